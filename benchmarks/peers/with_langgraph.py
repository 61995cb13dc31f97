"""LangGraph with its own savers: a graph whose one node runs again and again, each superstep synchronously written."""

from __future__ import annotations

import asyncio
import operator
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypedDict
from uuid import uuid4

from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, StateGraph
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

from benchmarks.contest import OUTPUT_SIZE, STEPS_PER_RUN, Contestant
from benchmarks.measure import Bench
from benchmarks.raw import sqlite_file
from benchmarks.samples import output


class _Answers(TypedDict):
    number: int
    answer: Any


class _Log(TypedDict):
    document: str
    log: Annotated[list[str], operator.add]


@asynccontextmanager
async def enter(bench: Bench) -> AsyncIterator[Contestant]:
    async def step(state: _Answers) -> _Answers:
        return {"number": state["number"] + 1, "answer": output(OUTPUT_SIZE, state["number"])}

    def is_over(state: _Answers) -> bool:
        return state["number"] >= STEPS_PER_RUN

    with bench.new_database() as url:
        async with _saver_at(url) as saver:
            graph = _loop(_Answers, step, is_over, saver)

            async def runs_at_once(runs: int) -> float:
                # The first checkpoint, of the input, is in the time: one in 21.
                begun = time.perf_counter()
                given: _Answers = {"number": 0, "answer": None}
                await asyncio.gather(*(_invoke(graph, given, STEPS_PER_RUN) for _ in range(runs)))
                return runs * STEPS_PER_RUN / (time.perf_counter() - begun)

            yield runs_at_once


def _loop(state: Any, step: Any, is_over: Any, saver: Any) -> Any:
    graph = StateGraph(state)
    graph.add_node("step", step)
    graph.add_edge(START, "step")
    graph.add_conditional_edges("step", is_over, {False: "step", True: END})
    return graph.compile(checkpointer=saver)


async def _invoke(graph: Any, given: Any, steps: int) -> None:
    config = {"configurable": {"thread_id": str(uuid4())}, "recursion_limit": steps + 2}
    await graph.ainvoke(given, config, durability="sync")


@asynccontextmanager
async def _saver_at(url: str) -> AsyncIterator[Any]:
    if url.startswith("postgresql:"):
        # As their documents ask for.
        settings: dict[str, Any] = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
        async with AsyncConnectionPool(url, max_size=20, kwargs=settings) as pool:
            saver: Any = AsyncPostgresSaver(pool)
            await saver.setup()
            yield saver
    else:
        async with AsyncSqliteSaver.from_conn_string(sqlite_file(url)) as saver:
            await saver.setup()
            yield saver


async def append_in_a_loop(url: str, document: str, item: Callable[[int], str], steps: int) -> None:
    """One thread whose every superstep appends an item to a list, beside a document that never changes."""

    async def step(state: _Log) -> dict[str, list[str]]:
        return {"log": [item(len(state["log"]))]}

    def is_over(state: _Log) -> bool:
        return len(state["log"]) >= steps

    async with _saver_at(url) as saver:
        await _invoke(_loop(_Log, step, is_over, saver), {"document": document, "log": []}, steps)
