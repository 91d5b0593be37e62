"""The review page: a person looks at what an audit found, and every decision is appended to edits.jsonl at once."""
