"""Every error the system raises on purpose, as one tree.

ElasWaveError
├── ConfigError (also ValueError)   a key, its value and the remedy; raised before any process starts
├── LaunchError                     the job could not be started, or gave up waiting for workers
├── ProtocolError                   a peer sent something that is not in the protocol
│   └── AuthenticationError         a peer does not know the job's secret
├── RefusedError                    the coordinator turned this worker away (other config, other torch)
├── PeerLost                        a member died: the attempt is over, the step is offered again
├── Dismissed                       the job is done, or this node leaves it: a worker that waits is not needed
├── Fenced                          this process is no longer a member and must stop
├── DeadlineExceeded                a wait ended at its deadline
├── NumericsError                   a gradient left the range in which sums are exact
├── CorruptState                    two holders of the same state disagree
│   └── Damaged                     ... and good copies are left: the members restore it, the step is offered again
├── Unrecoverable                   state and all its copies are gone; names what was lost
└── BenchError                      a contender failed, so that nothing was measured
"""


class ElasWaveError(Exception):
    """Base of everything below; catching it catches nothing else."""


class ConfigError(ElasWaveError, ValueError):
    """A configuration that cannot work.

    Args:
        key: dotted path of the setting, such as ``training.micro_batch_size``.
        value: what was given.
        remedy: what to write instead.
    """

    def __init__(self, key: str, value: object, remedy: str) -> None:
        super().__init__(f"{key} = {value!r}: {remedy}")
        self.key, self.value, self.remedy = key, value, remedy


class LaunchError(ElasWaveError):
    """The job could not be started, or gave up waiting for workers."""


class ProtocolError(ElasWaveError):
    """A peer sent something that is not in the protocol; its connection is closed."""


class AuthenticationError(ProtocolError):
    """A peer does not know the job's secret."""


class RefusedError(ElasWaveError):
    """The coordinator turned this worker away; starting it again would not help."""


class PeerLost(ElasWaveError):
    """A member of the current view died; every blocked operation raises this at once.

    Args:
        epoch: epoch of the view that replaces the current one.
    """

    def __init__(self, epoch: int) -> None:
        super().__init__(f"a member was lost; view {epoch} replaces the current one")
        self.epoch = epoch


class Dismissed(ElasWaveError):
    """The job is done, or this node leaves it: a spare or newcomer is not needed any more and may end well."""


class Fenced(ElasWaveError):
    """This process was declared dead or cut off from the majority, and must stop."""


class DeadlineExceeded(ElasWaveError, TimeoutError):
    """A wait ended at its deadline."""


class NumericsError(ElasWaveError):
    """A gradient left the range in which fixed-point sums are exact."""


class CorruptState(ElasWaveError):
    """Two holders of the same state disagree, and no good copy is left."""


class Damaged(CorruptState):
    """A member's part of the state is not what was committed; the members bring it back from copies together."""


class Unrecoverable(ElasWaveError):
    """State and all its copies are gone; the message names what was lost and where to resume."""


class BenchError(ElasWaveError):
    """A contender of a measurement failed or was not done in time, so that nothing was measured."""
