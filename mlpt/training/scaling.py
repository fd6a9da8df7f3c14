"""What data-parallel pretraining costs at any number of workers: bytes counted, seconds by a model of the machine.

Collectives follow the alpha-beta model of ring all-reduce (Thakur, Rabenseifner and Gropp 2005; Patarasuk and Yuan
2009): 2 (n - 1) messages of 1/n of the gradient each. docs/SCALING.md has the equations and the tables.
"""

import math
from dataclasses import dataclass

FLOAT = 4  # bytes of a weight, a moment, a kept gradient
_BACKWARD = 2 / 3  # of a step's arithmetic; gradients are exchanged behind it


@dataclass(frozen=True)
class Workload:
    """What a run does in a step, whatever the number of workers.

    parameters       trained weights.
    step_tokens      of the global batch.
    flops_per_token  forward and backward (`mlpt.training.speed.flops_per_token`).
    gradient_bytes   of a weight's gradient as it is exchanged: 4, or 2 in bf16.
    sharded          of the weights, those of which each worker holds a part: the layers' with fsdp, 0 with ddp.
    passes           micro-batches of each worker.
    interval         steps between updates of the policy; None: nothing is learned.
    snapshot_tensors float32 tensors of the size of the weights that an update is given: the weights, with look-aheads
                     AdamW's moments, with engine `alignment` a gradient of the whole step and one of each arm.
    arm_gradients    gradients of arms that all workers sum between updates (engine `alignment`): one an arm and step
                     that it is averaged over.
    lookahead        what an update takes the meta-learner, in training steps of one worker.
    policy_bytes     of an answer.
    checkpoint_every steps.
    """

    parameters: int
    step_tokens: int
    flops_per_token: float
    gradient_bytes: int = FLOAT
    sharded: int = 0
    passes: int = 1
    interval: int | None = None
    snapshot_tensors: int = 3
    arm_gradients: int = 0
    lookahead: float = 2.0
    policy_bytes: int = 1000
    checkpoint_every: int = 500

    @property
    def gradient(self) -> int:
        """Bytes that the workers sum in a step."""
        return self.gradient_bytes * self.parameters

    @property
    def snapshot(self) -> int:
        """Bytes of a snapshot."""
        return FLOAT * self.snapshot_tensors * self.parameters if self.interval else 0

    @property
    def checkpoint(self) -> int:
        """Bytes of a checkpoint: weights and both moments."""
        return 3 * FLOAT * self.parameters

    def held(self, workers: int) -> float:
        """Bytes that each of so many workers holds besides activations: weights, gradients, both moments."""
        return 4 * FLOAT * (self.parameters - self.sharded + self.sharded / workers)

    def sent(self, workers: int) -> float:
        """Bytes that each of so many workers sends in a step: gradients are summed by all; sharded ones by the one that
        holds them, and its weights are gathered in each pass, forwards and backwards."""
        ring = ring_bytes(self.gradient, workers)
        return ring + (2 * self.passes - 1) * (workers - 1) / workers * FLOAT * self.sharded

    def sent_for_arms(self, workers: int) -> float:
        """Bytes that each of so many workers sends between updates so that arms' gradients are summed."""
        return self.arm_gradients * ring_bytes(FLOAT * self.parameters, workers)


@dataclass(frozen=True)
class Machine:
    """Rates of one worker.

    flops      operations a second that training sustains.
    link       bytes a second between neighbours of the ring, in one direction.
    latency    seconds of a message.
    copy       bytes a second from the device into the object store, and of what a checkpoint takes from it.
    """

    flops: float
    link: float
    latency: float
    copy: float


@dataclass(frozen=True)
class Cost:
    """Of a step, in seconds and bytes, with what comes less often spread over the steps between.

    sent        bytes that each worker sends for gradients, those of arms too, and to gather sharded weights.
    compute     seconds of forward, backward and optimiser.
    exchange    seconds of the all-reduces; `exposed`: those that the backward pass does not hide.
    snapshot    seconds that training stands still for snapshots, and for answers that come to all workers.
    checkpoint  seconds that it stands still for checkpoints.
    learner     the meta-learner's share of the time between updates; above 1 training waits for it.
    """

    workers: int
    sent: float
    compute: float
    exchange: float
    exposed: float
    snapshot: float
    checkpoint: float
    learner: float

    @property
    def step(self) -> float:
        """Seconds of a step."""
        training = self.compute + self.exposed + self.snapshot + self.checkpoint
        return training * max(1.0, self.learner)

    @property
    def efficiency(self) -> float:
        """Speed as a share of so many workers that had nothing but their own arithmetic to do."""
        return self.compute / self.step


def cost(workload: Workload, machine: Machine, workers: int) -> Cost:
    """A step of `workload` by so many workers, each like `machine`, that share the global batch."""
    compute = workload.step_tokens * workload.flops_per_token / workers / machine.flops
    sent = workload.sent(workers)
    exchange = 2 * (workers - 1) * machine.latency + sent / machine.link
    exposed = max(0.0, exchange - _BACKWARD * compute)
    snapshot = learner = 0.0
    checkpoint = workload.checkpoint / machine.copy / workload.checkpoint_every
    if workload.interval:
        arms = workload.sent_for_arms(workers) / workload.interval
        summing = 2 * (workers - 1) * machine.latency * workload.arm_gradients / workload.interval + arms / machine.link
        sent, exchange, exposed = sent + arms, exchange + summing, exposed + summing
        answer = math.ceil(math.log2(workers)) * (machine.latency + workload.policy_bytes / machine.link)
        snapshot = (workload.snapshot / machine.copy + answer) / workload.interval
        ahead = workload.lookahead * workload.step_tokens * workload.flops_per_token / machine.flops
        learner = ahead / workload.interval / (compute + exposed + snapshot + checkpoint)
    return Cost(workers, sent, compute, exchange, exposed, snapshot, checkpoint, learner)


def ring_bytes(size: float, workers: int) -> float:
    """What each worker sends while all sum `size` bytes: a reduce-scatter and an all-gather."""
    return 2 * (workers - 1) / workers * size


def most_workers(workload: Workload, machine: Machine, least: float = 0.8) -> int:
    """The largest power of two of workers at which speed is at least `least` of the ideal; 1 where none is."""
    found = 1
    while found < 2**16 and cost(workload, machine, 2 * found).efficiency >= least:
        found *= 2
    return found
