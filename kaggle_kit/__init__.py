"""kaggle_kit: from a Kaggle image competition's files to a submission written offline.

Importing this package imports nothing heavy: a submission kernel starts without torch. The pieces are imported
by name, for example `from kaggle_kit.runtime.predictor import Predictor`.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
