"""One file an engine; the file's name is the recipe's `engine:` word.

An engine's file has:

    Config                                  its settings in the recipe
    PLATFORM or BACKEND                     by which Triton knows who runs it
    PACKAGES                                what a Python step needs that runs it itself (`steps/ENGINE`)
    LAYOUTS, FORMS                          the divisions into models and forms of the lengths it takes, the best first
    INTEGERS                                the type of the token ids it reads
    SPARSE                                  the patterns of zeros that it computes faster
    refusal(graph, config) -> str | None    why it cannot run what graph passes make, by their words and settings, and
                                            what to do about it
    runs_here() -> bool                     whether this machine can run it
    rungs(fp32, model, config) -> {...}     the graphs to choose from by name, the most accurate first: the export
                                            before the recipe's graph passes and after them, as the engine wants them
    build(graphs, version_dir, config, asked)   writes the engine of the last of `graphs` into Triton's version folder;
                                            where it cannot be built here, what builds it elsewhere, of all of them
    load(version_dir, config, threads=) -> Infer
    threads(config) -> [int]                of each instance
    measured(version_dir, config, asked) -> {...}   what was measured of the engine beside its metric, for the manifest;
                                            refuses one that takes more than the recipe allows
    model_config(config, asked)             its part of Triton's config
    versions() -> {...}                     with what it was built, for the manifest

and may have:

    times_ms(infers, config, asked) -> {...}    the ms of the rungs that were loaded here, by name; by default that of
                                                one sequence alone, as the table of stages has it
"""

from __future__ import annotations

from dataclasses import dataclass

from tritonpress_generator.signature import Signature


@dataclass(frozen=True)
class Asked:
    """What an engine will be asked, as far as it must know that when it is built."""

    workload: str
    """The public model's name."""
    signature: Signature
    form: str
    """How its sequences lie: the word of `serve.lengths`."""
    native: bool
    """Whether a backend of Triton's own runs it, as it is in NVIDIA's image, or a step with what it was gated with."""
    max_batch_size: int
    """The most sequences of a padded execution."""
    max_length: int
    """The most tokens of a sequence."""
    borders: tuple[int, ...]
    """The lengths to which batches are padded, ascending; none: to their longest."""
    lengths: tuple[int, ...]
    """The tokens of sequences as they will be asked."""
