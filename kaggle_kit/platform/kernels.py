"""Kernels: made from a template, checked, pushed, and waited for."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from kaggle_kit.errors import KaggleError, did_you_mean
from kaggle_kit.files import replacing_folder
from kaggle_kit.platform import rules
from kaggle_kit.platform.client import Client, KernelState, Push
from kaggle_kit.platform.leaks import find_leaks
from kaggle_kit.platform.metadata import KernelMetadata, kernel_problems, read_kernel
from kaggle_kit.platform.notebooks import code_of, notebook_of
from kaggle_kit.platform.polling import Clock, wait_until
from kaggle_kit.platform.publish import check_owner, refuse, size_text
from kaggle_kit.platform.rules import KERNEL_METADATA, is_gpu, slug_of
from kaggle_kit.platform.wheel import kernels_folder

RUN_LIMIT_S = 13 * 3600.0  # a session has 12 h at most, and may be queued before
_MEANT = {"--owner": "your user name on Kaggle", "--competition": "the competition's slug, the end of its address"}
_ACTIVE = ("queued", "running")


def template_names() -> list[str]:
    """Return the names of the kernel templates."""
    return sorted(path.parent.name for path in kernels_folder().glob(f"*/{KERNEL_METADATA}"))


def new_kernel(
    template: str,
    folder: Path,
    *,
    owner: str,
    competition: str | None = None,
    title: str | None = None,
    notebook: bool = False,
    datasets: Sequence[str] = (),
) -> KernelMetadata:
    """Make a kernel's folder from a template, with names in place of its placeholders.

    Args:
        template: Its name, such as `submit`.
        folder: Absent or empty.
        owner: The user's name on Kaggle.
        competition: The competition's slug; needed where the template attaches one.
        title: The kernel's; its slug becomes the kernel's. None: the template's.
        notebook: Write the code as a notebook.
        datasets: owner/slug of what is attached in place of the template's datasets; empty: those, as the owner's.

    Raises:
        KaggleError: When there is no such template, a name is missing or refused, or the folder is not empty.
    """
    if template not in template_names():
        raise KaggleError(f"there is no kernel template {template!r}{did_you_mean(template, template_names())}")
    source = kernels_folder() / template
    text = (source / KERNEL_METADATA).read_text(encoding="utf-8")
    if "COMPETITION" in text and not competition:
        raise KaggleError(f"the template {template!r} attaches a competition; give its slug with --competition")
    for flag, given in (("--owner", owner), ("--competition", competition or "")):
        if given in rules.PLACEHOLDERS:
            raise KaggleError(f"{flag} is {given}, a placeholder; give {_MEANT[flag]}")
    values = json.loads(text.replace("OWNER", owner).replace("COMPETITION", competition or ""))
    if title:
        values |= {"title": title, "id": f"{owner}/{slug_of(title)}"}
    if datasets:
        values["dataset_sources"] = list(datasets)
    code = source / values["code_file"]
    with replacing_folder(folder, (), what="kernel", error=KaggleError) as made:
        if notebook:
            values |= {"code_file": f"{code.stem}.ipynb", "kernel_type": "notebook"}
            content = notebook_of(code.read_text(encoding="utf-8"), name=code.name)
            (made / values["code_file"]).write_text(content, encoding="utf-8")
        else:
            shutil.copyfile(code, made / code.name)
        (made / KERNEL_METADATA).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        read_kernel(made)  # refuses what the names brought in
    return read_kernel(folder)


def check_kernel(folder: Path, *, internet: bool = False) -> list[str]:
    """Return every reason not to push a kernel, a line each: metadata, code, secrets.

    Args:
        folder: Holds kernel-metadata.json and the code.
        internet: The kernel may use the internet, so it cannot be a submission.
    """
    problems = kernel_problems(folder, internet=internet)
    try:
        name = json.loads((folder / KERNEL_METADATA).read_text(encoding="utf-8"))["code_file"]
        code = folder / name
        size = code.stat().st_size
    except (OSError, ValueError, KeyError, TypeError):  # said by the metadata's problems
        return problems
    if size > rules.CODE_SIZE_BYTES:
        limit = size_text(rules.CODE_SIZE_BYTES)
        problems.append(f"{code} has {size_text(size)}, and Kaggle takes {limit}; clear outputs, or publish data apart")
    problems += _code_problems(folder, code)
    goes = {KERNEL_METADATA: folder / KERNEL_METADATA, name: code}
    return [*problems, *(f"{folder}: {leak}" for leak in find_leaks(goes))]


def _code_problems(folder: Path, code: Path) -> Iterator[str]:
    """Name what does not compile, and modules beside the code: only the code's own file is pushed."""
    if code.suffix not in (".py", ".ipynb"):
        return
    try:
        text = code.read_text(encoding="utf-8")
        cells = [text] if code.suffix == ".py" else code_of(text)
    except (ValueError, KeyError, TypeError, AttributeError):  # no notebook: said by the metadata's problems
        return
    for number, cell in enumerate(cells, start=1):
        where = str(code) if code.suffix == ".py" else f"{code}, code cell {number}"
        try:
            flags = ast.PyCF_ONLY_AST | (0 if code.suffix == ".py" else ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            tree = compile(cell, where, "exec", flags=flags, dont_inherit=True)
        except (SyntaxError, ValueError) as error:
            line = getattr(error, "lineno", None)
            yield f"{where}, line {line}: {getattr(error, 'msg', error)}; mend the code"
            continue
        for module in sorted(_imported(tree)):
            if (folder / f"{module}.py").is_file() or (folder / module / "__init__.py").is_file():
                yield f"{where} imports {module}, which lies beside it and is not pushed; publish it in a dataset"


def _imported(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def push_kernel(
    folder: Path,
    client: Client,
    *,
    say: Callable[[str], None],
    accelerator: str | None = None,
    internet: bool = False,
) -> Push:
    """Push a kernel, after everything was checked that would make its session useless.

    Args:
        folder: Holds kernel-metadata.json and the code.
        client: Calls Kaggle.
        say: Called with a line for each step.
        accelerator: An id such as NvidiaTeslaT4, in place of the metadata's.
        internet: The kernel may use the internet.

    Raises:
        KaggleError: When the kernel has problems, its slug is a dataset's, a dataset is absent or processed, two GPU
            sessions run, or Kaggle refuses or leaves out a source.
    """
    refuse(check_kernel(folder, internet=internet), f"{folder} is not pushed")
    kernel = read_kernel(folder)
    check_owner(kernel.ref, client, what="kernel")
    check_attached(kernel, client, say=say)
    if client.find_dataset(kernel.ref) is not None:
        raise KaggleError(
            f"the slug of {kernel.ref} is taken: you have a dataset of that name; choose another title and id"
        )
    if is_gpu(accelerator or kernel.machine_shape):
        _check_sessions(client)
    say(
        f"{kernel.ref}: pushing {kernel.code_file.name}, {'private' if kernel.private else 'PUBLIC: everybody sees it'}"
    )
    answer = client.push_kernel(folder, accelerator=accelerator)
    _check_answer(kernel.ref, answer)
    say(
        f"{kernel.ref}: pushed"
        + (f" as version {answer.version}" if answer.version else "")
        + f" {answer.url}".rstrip()
    )
    return answer


def check_attached(kernel: KernelMetadata, client: Client, *, say: Callable[[str], None]) -> dict[str, int | None]:
    """Return the version of each dataset that a session gets which starts now.

    Raises:
        KaggleError: When a dataset is absent, or its newest version is still processed.
    """
    versions: dict[str, int | None] = {}
    for source in kernel.datasets:
        ref, pinned = "/".join(source.split("/")[:2]), source.split("/")[2:]
        state = client.find_dataset(ref)
        if state is None:
            if ref.split("/")[0].lower() == client.owner().lower():
                raise KaggleError(
                    f"{kernel.ref} attaches {ref}, and you have no such dataset; kaggle-kit publish it first"
                )
            say(f"{ref} cannot be seen from here; Kaggle says whether it attaches it")
            continue
        if not state.ready and not pinned:
            raise KaggleError(
                f"{kernel.ref} attaches {ref}, which is not ready ({state.status}): it would silently get the version "
                "before; wait with kaggle-kit publish, and push then"
            )
        versions[ref] = int(pinned[0]) if pinned else state.version
    return versions


def _check_sessions(client: Client) -> None:
    running = []
    for kernel in client.own_kernels():
        state = client.find_kernel(kernel.ref) if kernel.gpu else None
        if state is not None and state.phase in _ACTIVE:
            running.append(kernel.ref)
    if len(running) >= rules.MAX_GPU_SESSIONS:
        raise KaggleError(
            f"{len(running)} GPU sessions run already ({', '.join(running)}), and Kaggle allows "
            f"{rules.MAX_GPU_SESSIONS}; wait for one, or stop it on its page"
        )


def _check_answer(ref: str, answer: Push) -> None:
    if answer.error and rules.GPU_SESSIONS_FULL.search(answer.error):
        raise KaggleError(
            f"{ref} was not started: Kaggle says {answer.error!r}; wait for one of your GPU sessions, or stop it"
        )
    if answer.error:
        raise KaggleError(f"{ref} was not pushed: Kaggle says {answer.error!r}")
    if answer.left_out:
        competitions = [one.partition(" ")[2] for one in answer.left_out if one.startswith("competition ")]
        repair = f"accept the rules at {rules.rules_page(competitions[0])}" if competitions else "mend the sources"
        raise KaggleError(
            f"{ref} was pushed as version {answer.version}, but without {', '.join(answer.left_out)}; {repair} and "
            "push again"
        )


def wait_for_kernel(
    ref: str,
    client: Client,
    *,
    version: int | None,
    say: Callable[[str], None],
    limit_s: float = RUN_LIMIT_S,
    clock: Clock | None = None,
) -> KernelState:
    """Wait until a kernel's session ends, and return how.

    Args:
        ref: owner/slug.
        client: Calls Kaggle.
        version: Whose session; None: the newest.
        say: Called when it stands differently, and now and then.
        limit_s: How long to wait.
        clock: The time; None: the machine's.

    Raises:
        KaggleError: When it has not ended in time.
    """

    def ask() -> tuple[KernelState | None, str]:
        state = client.find_kernel(ref, version=version)
        if state is None:
            return None, "not there yet"
        return (None if state.phase in _ACTIVE else state), state.phase

    what = f"kernel {ref}" if version is None else f"kernel {ref} version {version}"
    return wait_until(ask, what=what, limit_s=limit_s, say=say, clock=clock or Clock())


def fetch_output(ref: str, client: Client, folder: Path) -> list[Path]:
    """Write a kernel's output files into a folder, and return them.

    Args:
        ref: owner/slug, as in the address of the kernel's page.
        client: Calls Kaggle.
        folder: Where they go; made where it is absent.

    Raises:
        KaggleError: When there is no such kernel, or a file would lie outside of the folder.
    """
    if client.find_kernel(ref) is None:
        raise KaggleError(f"there is no kernel {ref}, or you cannot see it; give owner/slug as in its page's address")
    folder.mkdir(parents=True, exist_ok=True)
    paths = client.download_output(ref, folder)
    outside = [str(path) for path in paths if not path.resolve().is_relative_to(folder.resolve())]
    refuse([f"{path} lies outside of {folder}; do not use it" for path in outside], f"the output of {ref}")
    return paths
