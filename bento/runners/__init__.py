"""Queues in front of the encoder's towers: admission control, batching, load shedding.

A *lane* is a thread of a queue and the batch that it runs. Lane 0 runs batches on the whole tower.
On a CPU, the queue has one more lane per core. These run *per-core batches*: each batch is computed
on one core, at the same time as the batches of the other cores.
"""
