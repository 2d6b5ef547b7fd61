"""Any sequence of builds, canaries, promotes and rollbacks leaves what is served whole, and what is old collected."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2 as pb
from tritonpress_generator import builds, repository, switching
from tritonpress_generator.errors import InputError

NAME = "w"
KEEP = st.integers(0, 2)
CONTENTS = st.integers(0, 3)
ACTIONS = st.one_of(
    st.tuples(st.just("build"), CONTENTS, st.booleans(), KEEP),
    st.tuples(st.sampled_from(["promote", "rollback", "withdraw"]), KEEP),
    st.tuples(st.just("choose"), st.integers(0, 5), KEEP),
)


def write(folder: Path, content: int, created: int, *, canary: bool, keep: int) -> str:
    """Writes a build of two steps, of which one is the same in every second content; returns its name."""

    def step(role: str, text: str) -> repository.Step:
        def fill(version_dir: Path) -> None:
            version_dir.mkdir(parents=True)
            (version_dir / "data").write_text(text)

        return repository.Step(role, pb.ModelConfig(backend="python", max_batch_size=8), fill)

    def ensemble(names: dict[str, str]) -> pb.ModelConfig:
        config = pb.ModelConfig(platform="ensemble", max_batch_size=8)
        for name in names.values():
            config.ensemble_scheduling.step.add(model_name=name, model_version=-1)
        return config

    steps = [step("tokenizer", str(content % 2)), step("engine", str(content))]
    manifest = {"golden": {}, "workload": NAME, "created": f"{created:04}"}
    written = repository.write(folder, NAME, steps, ensemble, manifest, canary=canary, keep=keep)
    return str(repository.read_manifest(folder, written.name)["build"])


class Expected:
    """What the repository should say."""

    def __init__(self) -> None:
        self.served: str | None = None
        self.before: list[str] = []
        self.canary: str | None = None

    def serve(self, build: str, lying: set[str]) -> None:
        if self.served is not None and build != self.served:
            self.before = [b for b in (self.served, *self.before) if b != build and b in lying]
        self.served = build


def act(folder: Path, action: tuple[object, ...], number: int, expected: Expected) -> None:
    """Does it, or is refused where the repository has nothing to do it with."""
    word, *rest = action
    keep = int(rest[-1])  # type: ignore[call-overload]
    # Servers that are not told have yet to follow: what they serve stays.
    spared = set() if word == "withdraw" else {expected.served, expected.canary}
    # What has been collected is history still, and may be built again.
    lying = set(builds.manifests(folder, NAME)) if expected.served else set()
    if word == "build":
        content, beside = rest[0], bool(rest[1]) and expected.served is not None
        build = write(folder, int(content), number, canary=beside, keep=keep)  # type: ignore[call-overload]
        if beside:
            expected.canary = build
        else:
            expected.serve(build, lying)
    elif word == "promote" and expected.canary is not None:
        assert switching.promote(folder, NAME, keep=keep).build == expected.canary
        expected.serve(expected.canary, lying)
    elif word == "choose":
        chosen = sorted(lying)[int(rest[0]) % len(lying)]  # type: ignore[call-overload]
        switching.promote(folder, NAME, chosen, keep=keep)
        expected.serve(chosen, lying)
    elif word == "rollback" and expected.before and expected.before[0] in lying:
        assert switching.rollback(folder, NAME, keep=keep).build == expected.before[0]
        expected.served, *expected.before = expected.before
    elif word == "withdraw" and expected.canary is not None:
        assert switching.withdraw(folder, NAME, keep=keep) == expected.canary
        expected.canary = None
    else:
        refused = {"promote": switching.promote, "rollback": switching.rollback, "withdraw": switching.withdraw}
        try:
            refused[str(word)](folder, NAME)
        except InputError:
            return
        raise AssertionError(f"{word} must be refused")
    assert len(idle(folder, expected) - spared) <= keep


def idle(folder: Path, expected: Expected) -> set[str]:
    return set(builds.manifests(folder, NAME)) - {expected.served, expected.canary, None}


@settings(max_examples=15, deadline=None)
@given(st.lists(ACTIONS, max_size=10))
def test_what_is_served_is_whole_and_what_is_old_goes(actions: list[tuple[object, ...]]) -> None:
    with tempfile.TemporaryDirectory() as parent:
        folder, expected = Path(parent) / "repo", Expected()
        for number, action in enumerate([("build", 0, False, 1), *actions]):
            act(folder, action, number, expected)
            assert builds.served(folder, NAME) == expected.served
            assert builds.canary(folder, NAME) == expected.canary
            found = builds.manifests(folder, NAME)
            assert builds.previous(folder, NAME) == expected.before
            for manifest in found.values():
                assert repository.changed_files(folder, manifest) == []
            steps = {step for manifest in found.values() for step in manifest["steps"].values()}
            ensembles = {NAME} | ({builds.canary_name(NAME)} if expected.canary else set())
            assert {path.name for path in folder.iterdir()} == steps | ensembles
            for ensemble in ensembles:
                config = builds.read_config(folder / ensemble)
                assert {step.model_name for step in config.ensemble_scheduling.step} <= steps
        # Said again, as once servers have followed, it leaves what is to be kept alone.
        served = builds.served(folder, NAME)
        assert switching.promote(folder, NAME, served, keep=0).before == served
        assert idle(folder, expected) == set()


def test_first_build_that_cannot_be_written_leaves_no_folder(tmp_path: Path) -> None:
    write(tmp_path, 0, 0, canary=False, keep=1)
    before = sorted(path.name for path in tmp_path.rglob("*"))

    def full(version_dir: Path) -> None:
        version_dir.mkdir(parents=True)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name, remains in (("other", False), (NAME, True)):
        with pytest.raises(InputError, match=r"No space left on device.*; what was there is unchanged"):
            repository.write(
                tmp_path, name, [repository.Step("engine", pb.ModelConfig(), full)], lambda _: pb.ModelConfig(), {}
            )
        assert (tmp_path / name).exists() is remains
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
