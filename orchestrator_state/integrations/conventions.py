"""The names of attributes, as OpenTelemetry's conventions have them, and ours where they have none.

Those for generative AI are still in development: what they rename is renamed here.
https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-agent-spans/
"""

from __future__ import annotations

from typing import Final

OPERATION_NAME: Final = "gen_ai.operation.name"
INVOKE_WORKFLOW: Final = "invoke_workflow"
WORKFLOW_NAME: Final = "gen_ai.workflow.name"
AGENT_NAME: Final = "gen_ai.agent.name"
MODEL: Final = "gen_ai.request.model"
TOKEN_TYPE: Final = "gen_ai.token.type"  # noqa: S105 - a kind of token of a model
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
ERROR_TYPE: Final = "error.type"

RUN_ID: Final = "orchestrator_state.run.id"
WORKFLOW_ID: Final = "orchestrator_state.workflow.id"
PARENT_ID: Final = "orchestrator_state.run.parent_id"
OUTCOME: Final = "orchestrator_state.outcome"
RUN_ATTEMPT: Final = "orchestrator_state.run.attempt"
VANISHED: Final = "orchestrator_state.run.vanished_workers"
STEP_ID: Final = "orchestrator_state.step.id"
STEP_CALL: Final = "orchestrator_state.step.call"
LINK_TO: Final = "orchestrator_state.link"
