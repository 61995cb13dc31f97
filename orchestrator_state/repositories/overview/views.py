"""The views for `psql`, `sqlite3` and whatever makes reports: plain SQL, and no payload in it.

A revision that changes a table has to drop them before, and to make them again: SQLite rebuilds tables under another
name, and refuses that to a table which a view reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

# The columns and the conditions are those of `store.list_runs`, with ten minutes for what is stuck.
_OVERVIEW: Final = """
CREATE VIEW workflow_overview AS
SELECT w.id, w.namespace, w.workflow_id, w.workflow_name, w.user_id, w.status,
  CASE
    WHEN w.status IN ('completed', 'failed', 'cancelled') THEN 'finished'
    WHEN w.status = 'paused' THEN 'paused'
    WHEN w.status NOT IN ('pending', 'running') THEN NULL
    WHEN w.is_leased AND NOT w.is_at_work AND w.awaits THEN 'waiting'
    WHEN w.is_leased AND NOT w.is_at_work AND w.sleeps THEN 'asleep'
    WHEN w.is_leased AND w.updated_at < {ten_minutes_ago} THEN 'stuck'
    WHEN w.is_leased THEN 'owned'
    WHEN w.is_asleep AND (w.awaits OR w.wake_at = {far_future}) THEN 'waiting'
    WHEN w.is_asleep THEN 'asleep'
    WHEN w.status = 'running' AND w.lease_expires_at IS NOT NULL THEN 'abandoned'
    ELSE 'runnable'
  END AS condition,
  w.error_type, w.attributes, w.lease_owner, w.lease_process, w.lease_expires_at, w.wake_at, w.attempts,
  (SELECT count(*) FROM step_states AS s WHERE s.workflow_state_id = w.id) AS steps,
  (SELECT count(*) FROM step_states AS s
    WHERE s.workflow_state_id = w.id AND s.status IN ('completed', 'skipped')) AS finished_steps,
  (SELECT count(*) FROM signals AS g WHERE g.workflow_state_id = w.id) AS unread_signals,
  w.parent_id, w.forked_from_id, w.started_at, w.updated_at, w.completed_at
FROM (
  SELECT r.*,
    (r.lease_expires_at > {now} AND r.lease_expires_at <= {furthest_lease}) IS TRUE AS is_leased,
    (r.wake_at > {now} AND (r.wake_at <= {latest_waking} OR r.wake_at = {far_future})) IS TRUE AS is_asleep,
    EXISTS (
      SELECT 1 FROM step_states AS s
      WHERE s.workflow_state_id = r.id AND s.status = 'running'
        AND coalesce(s.kind, '') NOT IN ('signal', 'question', 'child', 'sleep')
        AND NOT (s.kind IS NULL
          AND (substr(s.step_id, 1, 7) = 'signal:' OR s.step_id = 'sleep' OR substr(s.step_id, 1, 6) = 'sleep#'))
    ) OR EXISTS (
      SELECT 1 FROM current_steps AS c
      WHERE c.workflow_state_id = r.id AND c.lease_token = r.lease_token AND NOT EXISTS (
        SELECT 1 FROM step_states AS s
        WHERE s.workflow_state_id = c.workflow_state_id AND s.step_id = c.step_id
          AND (s.status IN ('completed', 'skipped') OR s.completed_at >= c.started_at)
      )
    ) AS is_at_work,
    EXISTS (
      SELECT 1 FROM step_states AS s
      WHERE s.workflow_state_id = r.id AND s.status = 'running'
        AND (s.kind IN ('signal', 'question', 'child') OR (s.kind IS NULL AND substr(s.step_id, 1, 7) = 'signal:'))
    ) OR EXISTS (
      SELECT 1 FROM workflow_states AS child
      WHERE child.parent_id = r.id AND child.namespace = r.namespace
        AND child.status IN ('pending', 'running', 'paused')
    ) AS awaits,
    EXISTS (
      SELECT 1 FROM step_states AS s
      WHERE s.workflow_state_id = r.id AND s.status = 'running'
        AND (s.kind = 'sleep'
          OR (s.kind IS NULL AND (s.step_id = 'sleep' OR substr(s.step_id, 1, 6) = 'sleep#')))
    ) AS sleeps
  FROM workflow_states AS r
) AS w
"""
_DURATIONS: Final = """
CREATE VIEW step_durations AS
SELECT w.namespace, w.workflow_name, w.workflow_id, s.workflow_state_id, s.step_id, s.kind, s.status, s.position,
  s.retry_count, s.started_at, s.completed_at, {seconds} AS seconds
FROM step_states AS s JOIN workflow_states AS w ON w.id = s.workflow_state_id
"""
_WORDS: Final[Mapping[str, Mapping[str, str]]] = {
    "postgresql": {
        "now": "statement_timestamp()",
        "ten_minutes_ago": "statement_timestamp() - interval '10 minutes'",
        "furthest_lease": "statement_timestamp() + interval '{leases} seconds'",
        "latest_waking": "TIMESTAMPTZ '2300-01-01 00:00:00+00'",
        "far_future": "TIMESTAMPTZ '9999-12-31 00:00:00+00'",
        "seconds": "CAST(extract(epoch FROM s.completed_at - s.started_at) AS double precision)",
    },
    "sqlite": {
        "now": "(strftime('%Y-%m-%dT%H:%M:%f', 'now') || '000+00:00')",
        "ten_minutes_ago": "(strftime('%Y-%m-%dT%H:%M:%f', 'now', '-10 minutes') || '000+00:00')",
        "furthest_lease": "(strftime('%Y-%m-%dT%H:%M:%f', 'now', '+{leases} seconds') || '000+00:00')",
        "latest_waking": "'2300-01-01T00:00:00.000000+00:00'",
        "far_future": "'9999-12-31T00:00:00.000000+00:00'",
        "seconds": "round((julianday(s.completed_at) - julianday(s.started_at)) * 86400, 3)",
    },
}
_LEASES: Final = str(2 * 24 * 3600)


def creating_views(dialect: str) -> Sequence[str]:
    """The statements that create the views."""
    words = {name: word.replace("{leases}", _LEASES) for name, word in _WORDS[dialect].items()}
    return [statement.format(**words).strip() for statement in (_OVERVIEW, _DURATIONS)]
