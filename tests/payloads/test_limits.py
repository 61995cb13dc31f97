"""The limits that settings put on payloads and workflows, on both databases."""

from typing import Any

import pytest

from orchestrator_state import InvalidPayload, PayloadTooLarge, Run, StateStore, StepState, WorkflowState
from tests.support.running import Effect, row_of, steps_of


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def a_state(**fields: Any) -> WorkflowState:
    return WorkflowState(workflow_id="w", workflow_name="n", **fields)


async def test_a_payload_over_its_limit_is_refused_at_every_door(database_url: str) -> None:
    async with StateStore.open(database_url, max_payload_bytes=1024) as store:
        await store.save_workflow_state(a_state(context={"a": "x" * 1000}))
        large = "x" * 1100
        state = a_state(context=large)
        with pytest.raises(PayloadTooLarge) as caught:
            await store.save_workflow_state(state)
        assert (caught.value.path, caught.value.expected) == ("context", 1024)
        with pytest.raises(PayloadTooLarge):
            await store.run("n", Effect(), workflow_id="r", context={"a": large})

        async def handler(run: Run) -> None:
            with pytest.raises(PayloadTooLarge):
                await run.step("large", lambda: large, retry=5)
            assert run.context == {}
            for key in ("a", "b"):
                run.context[key] = "x" * 600
            with pytest.raises(PayloadTooLarge) as whole:
                await run.step("beside", lambda: 1)
            assert whole.value.path == "context"
            del run.context["b"]
            await run.step("again", lambda: 1)

        await store.run("n", handler, workflow_id="run")
        steps = await steps_of(store, "run")
        assert (steps["large"].status, steps["large"].retry_count) == ("failed", 1), "it is not retried"
        row = await row_of(store, "run")
        with pytest.raises(PayloadTooLarge):
            await store.run("n", lambda _: Effect()(large), workflow_id="result")
        await store.save_workflow_state(await store.load_workflow_state(row.id))


async def test_a_wider_limit_takes_more(database_url: str) -> None:
    async with StateStore.open(database_url, max_payload_bytes=40 * 1024 * 1024, max_depth=300) as store:
        state = a_state(context={"a": "x" * (17 * 1024 * 1024), "deep": nested(299)})
        await store.save_workflow_state(state)
        assert await store.load_workflow_state(state.id) == state
        assert state.to_snapshot()["context"] == state.context


async def test_levels_are_counted_from_the_whole_context(database_url: str) -> None:
    async with StateStore.open(database_url, max_depth=10) as store:

        async def handler(run: Run) -> None:
            run.context["deep"] = nested(9)
            await run.step("fits", lambda: nested(10))
            run.context["deep"] = nested(10)
            with pytest.raises(InvalidPayload):
                await run.step("too deep", lambda: 1)
            run.context["deep"] = 1
            with pytest.raises(InvalidPayload):
                await run.step("too deep as well", lambda: nested(11))

        await store.run("n", handler, workflow_id="w")
        state = await store.load_workflow_state((await row_of(store, "w")).id)
        with pytest.raises(InvalidPayload):
            await store.save_workflow_state(a_state(context={"deep": nested(10)}))
        assert state.steps["fits"].outputs == nested(10)


async def test_a_workflow_has_a_size_and_a_number_of_steps(database_url: str) -> None:
    async with StateStore.open(database_url, max_workflow_bytes=4096, max_steps=5) as store:
        state = a_state()
        state.steps = {name: StepState(step_id=name, outputs="x" * 1000) for name in "abcd"}
        await store.save_workflow_state(state)
        state.steps["e"] = StepState(step_id="e", outputs="x" * 1000)
        with pytest.raises(PayloadTooLarge) as caught:
            await store.save_workflow_state(state)
        assert caught.value.path == "workflow"
        many = a_state()
        many.steps = {name: StepState(step_id=name) for name in "abcdef"}
        with pytest.raises(PayloadTooLarge) as caught:
            await store.save_workflow_state(many)
        assert caught.value.path == "steps"
        effect = Effect()

        async def handler(run: Run) -> None:
            for number in range(6):
                await run.step(f"s{number}", effect, number)

        with pytest.raises(PayloadTooLarge) as caught:
            await store.run("n", handler, workflow_id="r")
        assert caught.value.path == "steps"
        assert effect.calls == [0, 1, 2, 3, 4], "a step that cannot be recorded is not begun"


async def test_a_step_that_is_recorded_twice_counts_once(database_url: str) -> None:
    async def handler(run: Run) -> None:
        for _ in range(70):  # 840 characters of outputs, and 280 more if what a step began with were counted as well
            await run.step("charge", lambda: "x" * 10, on_unknown="raise")

    async with StateStore.open(database_url, max_workflow_bytes=1024) as store:
        await store.run("n", handler, workflow_id="w")
        steps = (await store.load_workflow_state((await row_of(store, "w")).id)).steps
        assert len(steps) == 70


async def test_the_values_of_a_context_are_counted_together(database_url: str) -> None:
    async def handler(run: Run) -> None:
        for number in range(40):
            run.context[f"key {number}"] = [number]
        await run.step("fits", lambda: 1)
        run.context["text"] = "," * 300
        await run.step("a text is one value", lambda: 1)
        for number in range(20):
            run.context[f"more {number}"] = [number]
        with pytest.raises(PayloadTooLarge) as caught:
            await run.step("one by one they fit", lambda: 1)
        assert caught.value.path == "context"
        assert caught.value.expected == 100

    async with StateStore.open(database_url, max_values=100) as store:
        with pytest.raises(PayloadTooLarge):
            await store.run("n", handler, workflow_id="w")
        assert (await row_of(store, "w")).status == "failed"


async def test_what_a_context_becomes_after_the_last_step_has_its_limit_too(database_url: str) -> None:
    async def handler(run: Run) -> None:
        await run.step("a", lambda: 1)
        for key in ("a", "b"):
            run.context[key] = "x" * 600

    async with StateStore.open(database_url, max_payload_bytes=1024) as store:
        with pytest.raises(PayloadTooLarge) as caught:
            await store.run("n", handler, workflow_id="w")
        assert caught.value.path == "context"
        row = await row_of(store, "w")
        assert row.status == "failed"
        assert (await store.load_workflow_state(row.id)).context == {}
