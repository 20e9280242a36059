"""Carries out a worker's list of operations: computes, sends and receives, and looks up in between.

A worker that waits for a message computes gradients of weights that were put off. When it gets to them changes no bit:
they are always added in the order in which they were put off.
"""

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch

from elaswave.communicator.group import Group
from elaswave.communicator.transfers import Handle
from elaswave.errors import PeerLost
from elaswave.events import Stage as StepStage
from elaswave.pipeline import message
from elaswave.pipeline.gradients import within
from elaswave.pipeline.schedule import Kind, Operation
from elaswave.pipeline.spent import FORWARD, INPUT, WEIGHTS, Spent
from elaswave.pipeline.stage import Stage, Tensors

Place = tuple[int, int]
"""Micro-batch, and the first layer of a leg."""


class Span(Protocol):
    """Marks a part of a step; see `runtime.job.Job.stage`."""

    def __call__(self, stage: StepStage, **fields: int) -> AbstractContextManager[None]: ...


class Executor:
    """One worker's computing in one attempt.

    Args:
        stage: layers to compute.
        group: members as the plan counts them.
        step: number of the step.
        span: marks parts of a step.
        look_up: called between operations; raises PeerLost when a member was lost.
        spent: takes note of what has been computed.
    """

    def __init__(
        self,
        stage: Stage,
        group: Group,
        step: int,
        span: Span,
        look_up: Callable[[], None],
        spent: Spent | None = None,
    ) -> None:
        self._stage, self._group, self._step, self._span, self._look_up = stage, group, step, span, look_up
        self._spent = Spent() if spent is None else spent
        self._leaving = False
        self._sends: list[Handle] = []
        self._activations: dict[Place, tuple[Tensors, tuple[bool, ...]]] = {}
        self._gradients: dict[Place, Tensors] = {}
        self._going_out: dict[Place, Tensors] = {}
        self._sent: dict[Place, Tensors] = {}
        self._losses: dict[int, float] = {}
        self._put_off: deque[Operation] = deque()

    def run(self, operations: Sequence[Operation]) -> None:
        """Compute everything on the list; returns when all of it has been sent too.

        Raises:
            PeerLost: a member was lost; sums and records hold what was completed.
            NumericsError: a gradient is too large for exact sums.
        """
        actions = {
            Kind.RECV_ACTIVATION: self._receive_activation,
            Kind.FORWARD: self._forward,
            Kind.SEND_ACTIVATION: self._send_activation,
            Kind.RECV_GRADIENT: self._receive_gradient,
            Kind.BACKWARD_INPUT: self._backward_input,
            Kind.SEND_GRADIENT: self._send_gradient,
            Kind.BACKWARD_WEIGHT: self._backward_weight,
        }
        done = 0
        try:
            for operation in operations:
                actions[operation.kind](operation)
                done += 1
            self._group.wait(self._sends)
        except PeerLost:
            self._save(operations[done : done + 2])
            raise

    def _save(self, operations: Sequence[Operation]) -> None:
        """A member was lost: complete what needs nobody else, as its gradients will count.

        Args:
            operations: the one that was interrupted, and the next.
        """
        self._leaving = True
        match operations:
            case (
                Operation(kind=Kind.FORWARD, start=0, stop=stop) as forward,
                Operation(kind=Kind.BACKWARD_INPUT) as backward,
            ) if stop == self._stage.layers.num_layers and forward.micro_batch == backward.micro_batch:
                if forward.micro_batch in self._losses:
                    self._backward_input(backward)
        while self._put_off:
            self._catch_up()

    # -- computing ---------------------------------------------------------------------------------------------

    def _forward(self, op: Operation) -> None:
        stage, at = self._stage, (op.micro_batch, op.start)
        received, flags = self._activations.pop(at, ((), ()))
        with self._span(StepStage.FORWARD, micro_batch=op.micro_batch, layer=op.start):
            outputs = stage.forward(self._step, op.micro_batch, op.start, op.stop, received, flags, op.missing)
        if op.stop == stage.layers.num_layers:
            self._losses[op.micro_batch] = float(outputs[0].item())
        else:
            self._going_out[at] = outputs
        self._spent.add(FORWARD, op.micro_batch, range(op.start, op.stop))
        self._pause()

    def _backward_input(self, op: Operation) -> None:
        at = (op.micro_batch, op.start)
        gradients = self._gradients.pop(at, ())
        with self._span(StepStage.BACKWARD, micro_batch=op.micro_batch, layer=op.start):
            self._going_out[at] = self._stage.backward_input(
                self._step, op.micro_batch, op.start, op.stop, gradients, at_once=op.at_once
            )
        if op.weights:
            self._put_off.append(op)
        else:
            self._stage.finish(op.micro_batch, op.start)
        if op.missing:
            self._spent.add(INPUT, op.micro_batch, range(max(op.start, op.missing[0][0]), op.stop))
        self._pause()

    def _backward_weight(self, op: Operation) -> None:
        """Catch up to this one, unless that was done while waiting."""
        while any((put.micro_batch, put.start) == (op.micro_batch, op.start) for put in self._put_off):
            self._catch_up()

    def _catch_up(self) -> None:
        """Compute the first of what was put off."""
        op = self._put_off.popleft()
        with self._span(StepStage.BACKWARD, micro_batch=op.micro_batch, layer=op.start, weights=1):
            self._stage.backward_weight(op.micro_batch, op.start, op.stop)
        num_layers = self._stage.layers.num_layers
        if op.stop == num_layers and op.missing[-1][1] == num_layers:
            self._stage.gradients.losses[op.micro_batch] = self._losses.pop(op.micro_batch)
        self._spent.add(WEIGHTS, op.micro_batch, within(op.missing, op.start, op.stop))
        self._pause()

    def _pause(self) -> None:
        """Between two operations."""
        if not self._leaving:
            self._look_up()

    # -- messages ----------------------------------------------------------------------------------------------

    def _receive_activation(self, op: Operation) -> None:
        header = torch.empty(message.HEADER_WORDS, dtype=torch.int64)
        self._wait(self._group.irecv(header, op.peer, op.tag))
        payload, views, flags = message.empty_like(header)
        self._wait(self._group.irecv(payload, op.peer, op.tag + 1))
        self._activations[op.micro_batch, op.start] = (views, flags)

    def _send_activation(self, op: Operation) -> None:
        at = (op.micro_batch, op.start)
        tensors = self._going_out.pop(at)
        self._send(message.describe(tensors), op.peer, op.tag)
        self._send(message.pack(tensors), op.peer, op.tag + 1)
        self._sent[at] = tuple(tensor.detach() for tensor in tensors if tensor.requires_grad)

    def _receive_gradient(self, op: Operation) -> None:
        at = (op.micro_batch, op.start)
        payload, views = message.room_for(self._sent.pop(at))
        self._wait(self._group.irecv(payload, op.peer, op.tag))
        self._gradients[at] = views

    def _send_gradient(self, op: Operation) -> None:
        self._send(message.pack(self._going_out.pop((op.micro_batch, op.start))), op.peer, op.tag)

    def _send(self, tensor: torch.Tensor, peer: int, tag: int) -> None:
        self._sends = [handle for handle in self._sends if not handle.done]
        self._sends.append(self._group.isend(tensor, peer, tag))

    def _wait(self, handle: Handle) -> None:
        """Wait for a message; what was put off fills the time."""
        self._look_up()
        while self._put_off and not handle.done:
            self._catch_up()
        self._group.wait(handle)
