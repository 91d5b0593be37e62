from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from kaggle_kit.platform.leaks import find_leaks

HEX32, HEX40 = "0123456789abcdef" * 2, "0123456789abcdef01234567" + "89abcdef01234567"
LETTERS = "Ab3dEf9hIj" * 5
SECRETS = {  # none is real, and none stands here in one piece
    "pem": "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIE",
    "kaggle token": "KGAT" + "_" + LETTERS[:32],
    "kaggle variable": "export KAGGLE" + f"_KEY={HEX32}",
    "kaggle variable in python": "os.environ['KAGGLE" + f"_API_TOKEN'] = '{LETTERS[:24]}'",
    "kaggle.json": json.dumps({"username": "anna", "key": HEX32}),
    "hugging face": "hf" + "_" + LETTERS[:34],
    "wandb login": f"wandb login {HEX40}",
    "wandb variable": "WANDB" + f"_API_KEY: wandb_v1_{LETTERS[:30]}",
    "netrc": f"machine api.wandb.ai login user password {HEX40}",
    "aws id": "AKIA" + "ABCDEFGHIJKLMNOP",
    "aws secret": "aws_secret_access_key = " + LETTERS[:40],
    "github": "ghp" + "_" + LETTERS[:36],
    "slack": "xoxb" + "-123456789012-abc",
    "openai": "sk" + "-" + LETTERS[:40],
    "jwt": "eyJ" + LETTERS[:20] + ".eyJ" + LETTERS[:20] + "." + LETTERS[:20],
    "password": 'password = "' + LETTERS[:20] + '"',
}
HARMLESS = (
    "api_key = os.environ['MY_KEY']",
    'password = "..."',
    "KAGGLE_KEY is read from the environment",
    '{"key": "' + HEX32 + '"}',
    f"sha256: {HEX32}{HEX32}",
    '{"eos_token": "<|endoftext|>", "unk_token": "abcdefghijklmnopqrstuvwx"}',
    "wandb.init(project='bengali')",
    "hf_hub_download(repo_id)",
    "-----BEGIN CERTIFICATE-----",
)


@pytest.mark.parametrize("kind", SECRETS)
@pytest.mark.parametrize("form", ["text", "notebook", "utf-16"])
def test_a_secret_is_found_with_its_line_and_never_shown(tmp_path: Path, kind: str, form: str) -> None:
    secret, path = SECRETS[kind], tmp_path / "notes.ipynb"
    if form == "notebook":
        cell = {"cell_type": "code", "outputs": [{"name": "stdout", "text": ["fine\n", f"{secret}\n"]}]}
        path.write_text(json.dumps({"cells": [cell]}))
    else:
        path.write_text(f"first line\n{secret}\n", encoding="utf-8" if form == "text" else "utf-16")
    (leak,) = find_leaks({"code/notes.ipynb": path})
    assert (leak.name, leak.line) == ("code/notes.ipynb", 1 if form == "notebook" else 2)
    assert "code/notes.ipynb, line" in str(leak) and "take it out" in str(leak)
    assert not any(word in str(leak) for word in (HEX32, LETTERS[:16], "ABCDEFGHIJKLMNOP", "MIIE"))


@pytest.mark.parametrize("text", HARMLESS)
def test_what_only_looks_like_a_secret_passes(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.py").write_text(text)
    assert find_leaks({"a.py": tmp_path / "a.py"}) == []


@pytest.mark.parametrize(
    "name",
    [
        "kaggle.json",
        "sub/access_token",
        ".env",
        ".env.local",
        "prod.env",
        "_netrc",
        "deep/er/.netrc",
        "id_ed25519",
        ".ssh/config",
        ".kaggle/anything",
        "WANDB_API_KEY.txt",
        "Kaggle.JSON",
    ],
)
def test_a_name_alone_gives_a_secret_away_in_a_folder_and_in_a_wheel(tmp_path: Path, name: str) -> None:
    path = tmp_path / "empty"
    path.touch()
    assert [(leak.name, leak.line) for leak in find_leaks({name: path})] == [(name, None)]
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        archive.writestr("fine.py", "")
        archive.writestr(name, "")
    assert [leak.name for leak in find_leaks({"a.whl": tmp_path / "a.whl"})] == [f"a.whl!{name}"]


def test_certificates_in_a_wheel_pass_and_private_keys_do_not(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        archive.writestr("certifi/cacert.pem", "-----BEGIN CERTIFICATE-----")
        archive.writestr("server.key", SECRETS["pem"])
    assert [leak.name for leak in find_leaks({"a.whl": tmp_path / "a.whl"})] == ["a.whl!server.key"]


def test_binary_files_are_passed_over_and_many_findings_end(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\0\1" + SECRETS["aws id"].encode())
    (tmp_path / "many.txt").write_text(f"{SECRETS['github']}\n" * 1000)
    leaks = find_leaks({name: tmp_path / name for name in ("model.onnx", "many.txt")})
    assert {leak.name for leak in leaks} == {"many.txt"} and len(leaks) <= 40


def test_the_kit_s_own_templates_and_modules_are_clean() -> None:
    from kaggle_kit.platform.wheel import PACKAGE, kernels_folder

    files = [path for root in (PACKAGE, kernels_folder()) for path in root.rglob("*") if path.is_file()]
    assert find_leaks({str(path): path for path in files if "__pycache__" not in path.parts}) == []
