"""The wheel works alone: built by way of the sdist, installed into an empty environment, used from elsewhere.

What a checkout hides is found here: a file that is not packed, the migrations above all, and a dependency
that only the developers' environment has.
"""

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent

USE = """
import asyncio
from importlib.resources import files

from orchestrator_state import StateStore, WorkflowState


async def main() -> None:
    state = WorkflowState(workflow_id="wheel", workflow_name="Wheel", context={"in": ["the", "wheel"]})
    async with StateStore.open("wheel.db") as store:
        await store.save_workflow_state(state)
    async with StateStore.open("wheel.db") as store:
        loaded = await store.load_workflow_state(state.id)
    assert loaded.context == state.context, loaded.context
    assert files("orchestrator_state").joinpath("py.typed").is_file()
    print("saved and loaded with", files("orchestrator_state"))


asyncio.run(main())
"""


def run(*command: str | Path, cwd: Path) -> None:
    """Run to the end, in an environment that names neither the checkout nor a database of the developer's."""
    left_out = {"DATABASE_URL", "PYTHONPATH", "VIRTUAL_ENV"}
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    subprocess.run(command, cwd=cwd, check=True, env=environment | {"DATABASE_URL": "sqlite:///wheel.db"})


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="wheel-") as name:
        elsewhere = Path(name)
        run(sys.executable, "-m", "build", "--outdir", elsewhere / "dist", CHECKOUT, cwd=elsewhere)
        wheel = next((elsewhere / "dist").glob("*.whl"))
        venv.create(elsewhere / "venv", with_pip=True)
        installed = elsewhere / "venv" / "bin"
        run(installed / "python", "-m", "pip", "install", "--quiet", wheel, cwd=elsewhere)
        run(installed / "python", "-c", USE, cwd=elsewhere)
        run(installed / "orchestrator-state", "db", "current", cwd=elsewhere)


if __name__ == "__main__":
    main()
