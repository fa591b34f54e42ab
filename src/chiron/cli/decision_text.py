"""A decision in sentences and numbers: what was seen, what was done, why this, and what came of it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from chiron.cli.batch.durations import short
from chiron.v1 import cluster_pb2 as pb
from chiron.v1 import types_pb2

_DONE = {
    "place": "placed {instance} on {node}",
    "adopt": "took over {instance}, which was running on {node}",
    "stop": "stopped {instance} on {node}",
    "scale": "changed how many instances of {model} should run",
    "set_role": "changed the role of {instance}",
    "apply_model": "applied a spec of {model}",
    "delete_model": "deleted {model}",
    "drain": "had instances of {model} drained",
    "drain_node": "changed whether {node} takes instances",
    "node_leaving": "noted that {node} is leaving",
    "node_left": "noted that {node} has left",
    "start": "started instances of {model}",
    "retire": "retired {instance} on {node}",
    "change_role": "changed the role of {instance}",
    "sleep": "put {instance} to sleep",
    "wake": "woke {instance}",
    "give_up": "gave up {instance} on {node}",
    "advised": "advised, and did not act on {model}",
    "pause": "paused the autoscaling of {model}",
    "resume": "resumed the autoscaling of {model}",
    "set_limits": "set the limits of {instance}",
    "roll": "took the roll of {model} further",
}
_MILESTONES = {
    "sent": "its agent was told",
    "received": "the agent took it up",
    "loading": "the engine began to load",
    "ready": "it was ready",
    "routed": "routers knew of it",
    "first_request": "its first request came",
    "draining": "it drained",
    "stopped": "it had stopped and its GPUs were free",
    "asleep": "it slept",
    "applied": "it was in force",
    "reversed": "it was undone",
}
_WAITS = {
    pb.OUTCOME_KIND_STARTED: "not ready yet",
    pb.OUTCOME_KIND_WOKEN: "not ready yet",
    pb.OUTCOME_KIND_STOPPED: "not stopped yet",
    pb.OUTCOME_KIND_SENT_TO_SLEEP: "not asleep yet",
    pb.OUTCOME_KIND_ROLE_CHANGED: "not in force yet",
}
_REACHED = {
    pb.OUTCOME_KIND_STARTED: "ready",
    pb.OUTCOME_KIND_WOKEN: "ready",
    pb.OUTCOME_KIND_STOPPED: "stopped",
    pb.OUTCOME_KIND_SENT_TO_SLEEP: "asleep",
    pb.OUTCOME_KIND_ROLE_CHANGED: "applied",
}
_MOST_NUMBERS = 12


def is_advice(decision: pb.Decision) -> bool:
    """Whether it says what would be done, and nothing was."""
    return decision.action == "advised"


def headline(decision: pb.Decision) -> str:
    """What was done, in one clause."""
    kind = decision.outcome.kind
    action = decision.action
    names = {"instance": decision.instance_id, "node": decision.node_id or "?", "model": decision.model}
    if action == "replace":
        verb = "stopped" if kind == pb.OUTCOME_KIND_STOPPED else "placed"
        return f"{verb} {decision.instance_id} on {decision.node_id} to replace an instance"
    if action in _DONE:
        return _DONE[action].format(**names)
    what = decision.instance_id or decision.model or decision.node_id
    where = f" on {decision.node_id}" if decision.instance_id and decision.node_id else ""
    return f"{action.replace('_', ' ').replace('-', ' ')} {what}{where}"


def seen(inputs: pb.DecisionInputs) -> list[str]:
    """What was known, as sentences."""
    texts = [_instances(inputs), _demand(inputs)]
    pressures = []
    if inputs.HasField("ibp"):
        pressures.append(f"IBP {inputs.ibp:.2f}")
    if inputs.HasField("theta"):
        pressures.append(f"Θ {inputs.theta:.2f}")
    if inputs.HasField("bbp"):
        pressures.append(f"BBP {inputs.bbp:.0f}")
    if pressures:
        texts.append(", ".join(pressures) + ".")
    if inputs.groups:
        texts.append(_groups(inputs))
    texts.append(_gpus(inputs))
    return [text for text in texts if text]


def why_not(decision: pb.Decision) -> list[str]:
    """What else was weighed, one sentence each."""
    return [f"{one.action}: {one.why_not}." for one in decision.alternatives]


def numbers(decision: pb.Decision) -> str:
    """The figures that the decision names, but those that `seen` tells."""
    told = {"ibp", "theta", "bbp"} if decision.HasField("inputs") else set()
    found = [f"{name} {value:g}" for name, value in sorted(decision.numbers.items()) if name not in told]
    more = f", and {len(found) - _MOST_NUMBERS} more (--json)" if len(found) > _MOST_NUMBERS else ""
    return ", ".join(found[:_MOST_NUMBERS]) + more


def came_of(decision: pb.Decision, followed_by: Sequence[pb.Decision] = ()) -> list[str]:
    """What came of it, as sentences; of a decision about no instance, what came of those that followed."""
    if decision.HasField("outcome"):
        return _outcome(decision.outcome)
    if is_advice(decision):
        return ["Nothing was done: it is advice."]
    if not followed_by:
        return ["Nothing is followed up." if decision.instance_id else "No other decision has followed."]
    return [f"{headline(one)}: {in_short(one)}." for one in followed_by]


def in_short(decision: pb.Decision) -> str:
    """What came of it, in a few words."""
    if not decision.HasField("outcome"):
        return "done"
    outcome = decision.outcome
    reached = _REACHED.get(outcome.kind, "")
    after = {one.name: one.after_s for one in outcome.milestones}
    texts = []
    if outcome.state == pb.OUTCOME_STATE_FAILED:
        texts.append(f"failed: {outcome.reason}" if outcome.reason else "failed")
    elif reached in after:
        texts.append(f"{'in force' if reached == 'applied' else reached} after {_time(after[reached])}")
    elif outcome.state == pb.OUTCOME_STATE_OVERTAKEN:
        texts.append("overtaken")
    else:
        texts.append(_WAITS.get(outcome.kind, "under way"))
    if outcome.HasField("need"):
        texts.append("needed" if outcome.need.needed else "not needed")
    if "reversed" in after:
        texts.append(f"undone after {_time(after['reversed'])}")
    elif outcome.state == pb.OUTCOME_STATE_OVERTAKEN and reached in after:
        texts.append("undone since")
    return ", ".join(texts)


def _outcome(outcome: pb.DecisionOutcome) -> list[str]:
    texts = []
    steps = [
        f"{_MILESTONES.get(one.name, one.name)} after {_time(one.after_s)}"
        for one in outcome.milestones
        if one.name != "reversed"
    ]
    if steps:
        texts.append(_sentence(", ".join(steps)))
    if outcome.state == pb.OUTCOME_STATE_OPEN:
        waits = _waits(outcome)
        texts.append(_sentence(f"{waits}: {outcome.reason}" if outcome.reason else waits))
    elif outcome.state == pb.OUTCOME_STATE_FAILED:
        texts.append(_sentence(f"it failed: {outcome.reason}"))
    elif outcome.reason:
        texts.append(_sentence(outcome.reason))
    if outcome.HasField("need"):
        texts.append(_need(outcome.need))
    texts += [
        f"It was undone after {_time(one.after_s)} by decision {outcome.reversed_by}."
        for one in outcome.milestones
        if one.name == "reversed"
    ]
    return texts


def _waits(outcome: pb.DecisionOutcome) -> str:
    """What is still to come of it."""
    if not any(one.name == _REACHED.get(outcome.kind) for one in outcome.milestones):
        return _WAITS.get(outcome.kind, "under way")
    if outcome.kind not in (pb.OUTCOME_KIND_STARTED, pb.OUTCOME_KIND_WOKEN):
        return "whether it is undone is still watched"
    return (
        "its first request is waited for" if outcome.HasField("need") else "whether it is needed is watched"
    )


def _need(need: pb.DecisionNeed) -> str:
    if need.peak_without < 0:
        without = "without it no instance would have taken the requests"
    else:
        without = (
            f"without it requests would have been {need.peak_without:.2f} of the other slots, "
            f"{'more' if need.needed else 'no more'} than {need.limit:.2f}"
        )
    verdict = "It was needed" if need.needed else "It was not needed"
    return f"{verdict}: {without}; its own use peaked at {need.peak_use:.2f} in {_time(need.window_s)}."


def _instances(inputs: pb.DecisionInputs) -> str:
    if not inputs.instances:
        return "No instance."
    texts = []
    for one in inputs.instances:
        state = types_pb2.InstanceState.Name(one.state).removeprefix("INSTANCE_STATE_")
        role = types_pb2.Role.Name(one.role).removeprefix("ROLE_").lower()
        slots = f" ({one.slots} slots)" if one.slots else ""
        texts.append(f"{one.count} {role} {state}{slots}")
    return _sentence(", ".join(texts))


def _demand(inputs: pb.DecisionInputs) -> str:
    texts = []
    for name, counts in (
        ("running", inputs.running),
        ("waiting in engines", inputs.waiting),
        ("waiting in routers", inputs.queued),
    ):
        kinds = [("interactive", counts.interactive), ("batch", counts.batch)]
        if told := " and ".join(f"{count} {kind}" for kind, count in kinds if count):
            texts.append(f"{told} {name}")
    if inputs.batch_items:
        texts.append(f"{inputs.batch_items} batch items queued")
    rates = [("interactive", inputs.interactive_per_s), ("batch", inputs.batch_per_s)]
    if told := " and ".join(f"{rate:.3g} {kind}" for kind, rate in rates if rate > 0):
        texts.append(f"{told} arriving per second")
    return _sentence(", ".join(texts) or "no request runs, waits or arrives")


def _groups(inputs: pb.DecisionInputs) -> str:
    texts = []
    for one in inputs.groups:
        due = "without a deadline" if not one.HasField("deadline_in_s") else _due(one.deadline_in_s)
        text = f"{one.requests} {due}"
        if one.HasField("finish_in_s"):
            late = one.HasField("deadline_in_s") and one.finish_in_s > one.deadline_in_s
            text += f", expected in {_time(one.finish_in_s)}{' (late)' if late else ''}"
        texts.append(text)
    if inputs.further_groups:
        texts.append(f"{inputs.further_groups} further groups")
    return _sentence("batch requests: " + "; ".join(texts))


def _due(in_s: float) -> str:
    return f"due in {_time(in_s)}" if in_s >= 0 else f"due {_time(-in_s)} ago"


def _gpus(inputs: pb.DecisionInputs) -> str:
    where = ", ".join(f"{node} {free}" for node, free in sorted(inputs.free_gpus_on.items()))
    text = f"{inputs.free_gpus} of {inputs.gpus} GPUs free" + (f" ({where})" if where else "")
    if inputs.silent_nodes:
        nodes = "1 node" if inputs.silent_nodes == 1 else f"{inputs.silent_nodes} nodes"
        text += f"; {nodes} not heard of"
    return _sentence(f"{text}; the oldest report is {_time(inputs.oldest_report_s)} old")


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else text + "."


def _time(seconds: float) -> str:
    if seconds < 0.0005:
        return "0 s"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds >= 0.095 else f"{seconds * 1000:.0f} ms"
    return short(seconds)


def children(decision: pb.Decision, decisions: Iterable[pb.Decision]) -> list[pb.Decision]:
    """Those that follow from it, the oldest first, of decisions that come newest first."""
    return [one for one in decisions if one.cause == decision.decision_id][::-1]
