"""Whether two workers can train together: the same configuration, the same versions."""

from collections.abc import Mapping

from elaswave.coordination.protocol import WorkerRecord


def mismatch(reference: WorkerRecord, worker: WorkerRecord) -> str | None:
    """Why `worker` cannot train together with `reference`, with the remedy; None when it can.

    Among the versions may be settings, known by their dotted keys; those with their default value are left out.
    """
    names = sorted(reference.versions.keys() | worker.versions.keys(), key=lambda name: (_is_setting(name), name))
    for name in names:
        ours, theirs = _version(reference.versions, name), _version(worker.versions, name)
        if ours != theirs and _is_setting(name):
            return (
                f"worker {worker.worker_id} was started with {name} = {theirs}, the job with {ours}; "
                "start every node with the same file and overrides"
            )
        if ours != theirs:
            return (
                f"worker {worker.worker_id} runs {name} {theirs}, the job runs {name} {ours}; "
                f"install {name} {ours} on its host"
            )
    if reference.config_digest != worker.config_digest:
        return (
            f"worker {worker.worker_id} was started with another configuration ({worker.config_digest[:12]}) than "
            f"the job ({reference.config_digest[:12]}); start every node with the same file and overrides"
        )
    return None


def _version(versions: Mapping[str, str], name: str) -> str:
    return versions.get(name, "its default" if _is_setting(name) else "(unknown)")


def _is_setting(name: str) -> bool:
    return "." in name
