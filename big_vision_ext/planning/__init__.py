"""Will a config fit a pod, and how fast can it be? The parts of `python -m big_vision_ext.plan`.

`topologies` knows chips and pods, `program` compiles the training step for one, `hlo` reads the
compiled program, `collectives` and `traffic` count what it moves, `memory` what it keeps,
`roofline` turns counts into times, `advice` into warnings, `search` finds the largest batch.
"""
