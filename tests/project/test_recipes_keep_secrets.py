"""No recipe of the documents can write plain text into a store that encrypts."""

import ast
import asyncio
import re
import shutil
from pathlib import Path

import pytest
from sqlalchemy import Engine, event

from orchestrator_state import AesGcm, KeyRing, Payloads, StateStore
from orchestrator_state.encryption import new_key
from tests.project.test_docs import BLOCK, PAGES, ROOT, run_block

CODE = [*((page, block["code"]) for page in PAGES for block in BLOCK.finditer(page.read_text()))]
EXAMPLES = [(file, file.read_text()) for file in sorted(ROOT.glob("examples/**/*.py"))]
OWN_SESSION = ROOT / "docs" / "how-to" / "own-session.md"
WRITES = re.compile(r"\s*(INSERT INTO|UPDATE) (workflow_states|step_states|checkpoints|signals)\b")


def made_by_hand(code: str) -> bool:
    """Whether a unit of work is made without a word about payloads."""
    tree = compile(code, "page", "exec", flags=ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return any(
        ast.unparse(call.func).endswith("UnitOfWork") and "payloads" not in {word.arg for word in call.keywords}
        for call in calls
    )


def test_one_that_is_made_by_hand_would_be_found() -> None:
    assert made_by_hand("await orchestrator_state.UnitOfWork(session, namespace='n').workflows.save(state)")
    assert not made_by_hand("await UnitOfWork(session, payloads=store.payloads).workflows.save(state)")


def test_no_recipe_makes_a_unit_of_work_by_hand() -> None:
    assert len(CODE) > 50
    assert not [str(page) for page, code in [*CODE, *EXAMPLES] if made_by_hand(code)]


def test_the_recipes_for_a_session_of_ones_own_write_nothing_unencrypted(
    tmp_path: Path, sqlite_template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They run as they stand, but that each store is opened with a key: the file is empty at first."""
    payloads = Payloads([AesGcm(KeyRing({"k": new_key()}, primary="k"))], strict=True)
    opened = StateStore.open
    monkeypatch.setattr(StateStore, "open", lambda *where, **how: opened(*where, payloads=payloads, **how))
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(sqlite_template, "app.db")
    sent: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, parameters: object, *_: object) -> None:
        if WRITES.match(statement):
            sent.append(repr(parameters))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        with asyncio.Runner() as runner:
            namespace: dict[str, object] = {"__name__": "page"}
            for block in BLOCK.finditer(OWN_SESSION.read_text()):
                run_block(block["code"], namespace, OWN_SESSION, runner)
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    written = "".join(sent)
    assert written.count("~payload:aes-gcm") > 10
    # Ids and ciphertext are digits too: the price is one that stands by itself.
    assert not [
        secret for secret in ("book", r"(?<![\w+/-])1250(?![\w+/-])", "cents", r"\{\"") if re.search(secret, written)
    ]
