import os
import shutil
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.lib.checkpoint import CheckpointStore
from experiments.lib.errors import UserError


def _tree(seed):
    params = {
        "w": jax.random.normal(jax.random.key(seed), (16, 8)),
        "b": jnp.full((8,), seed, jnp.bfloat16),
    }
    return {
        "params": params,
        "opt_state": optax.chain(optax.clip(1.0), optax.adam(0.01)).init(params),
        "key": jax.random.key(seed),
        "keys": jax.random.split(jax.random.key(seed), 3),
        "step": seed,
        "rate": 0.1 * seed,
        "done": bool(seed % 2),
        "order": np.arange(5) + seed,
        "nothing": None,
    }


def _assert_same_bits(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert type(a) is type(b)
        if isinstance(b, jax.Array):
            assert a.dtype == b.dtype
            assert a.committed == b.committed
            if jax.dtypes.issubdtype(b.dtype, jax.dtypes.prng_key):
                a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints")


def test_restores_every_bit(store):
    assert store.latest() is None
    store.save(7, _tree(7))
    store.save(7, _tree(7))
    assert store.latest() == 7
    _assert_same_bits(store.restore(7, _tree(0)), _tree(7))


def test_special_floats_keep_their_bits(store):
    values = np.array([np.nan, -0.0, np.inf, 1e-45], np.float32)
    values.view(np.uint32)[0] |= 5
    store.save(1, {"x": jnp.asarray(values)})
    assert np.asarray(store.restore(1, {"x": jnp.zeros(4)})["x"]).tobytes() == values.tobytes()


def test_keeps_the_newest_in_a_new_process_too(store, tmp_path):
    for step in (1, 2, 3):
        store.save(step, _tree(step))
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["2", "3"]
    again = CheckpointStore(tmp_path / "checkpoints")
    _assert_same_bits(again.restore(2, _tree(0)), _tree(2))


def _truncate(file):
    os.truncate(file, file.stat().st_size // 2)


def _garble(file):
    file.write_bytes(b"garbage" * 20)


def _flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "only_largest"), [(_truncate, False), (_garble, False), (_flip_a_bit, True)]
)
def test_damage_is_found_and_the_one_before_still_works(tmp_path, damage, only_largest):
    folder = tmp_path / "checkpoints"
    store = CheckpointStore(folder)
    for step in (1, 2):
        store.save(step, _tree(step))
    files = [path for path in (folder / "2").rglob("*") if path.is_file()]
    if only_largest:
        files = [max(files, key=lambda path: path.stat().st_size)]
    for file in files:
        damage(file)
    damaged = CheckpointStore(folder)
    with pytest.raises(UserError, match=r"checkpoints/2 is damaged .*delete that folder") as error:
        damaged.restore(damaged.latest(), _tree(0))
    assert "\n" not in str(error.value)
    shutil.rmtree(folder / "2")
    repaired = CheckpointStore(folder)
    _assert_same_bits(repaired.restore(repaired.latest(), _tree(0)), _tree(1))


@pytest.mark.parametrize("change", [{"order": np.arange(6)}, {"extra": 1}])
def test_another_structure_is_refused(store, change):
    store.save(1, _tree(1))
    with pytest.raises(UserError, match="of another configuration"):
        store.restore(1, {**_tree(0), **change})


def test_full_disk(store, monkeypatch):
    store.save(1, _tree(1))
    usage = type(shutil.disk_usage("/"))(total=10**9, used=10**9, free=5_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match="free some space"):
        store.save(2, _tree(2))
    assert store.latest() == 1


def test_a_disk_that_fails_while_saving(store, monkeypatch):
    def fail(*_, **__):
        raise ValueError("RESOURCE_EXHAUSTED: Error writing: No space left on device")

    monkeypatch.setattr(store._manager, "save", fail)
    with pytest.raises(UserError, match="cannot save a checkpoint .*free some space"):
        store.save(1, _tree(1))


def test_bugs_are_not_blamed_on_the_disk(store):
    with pytest.raises(ValueError, match="zero size"):
        store.save(1, {"x": jnp.zeros((0,))})


@pytest.mark.process
def test_kill_in_the_middle_of_a_save(tmp_path):
    program = textwrap.dedent(
        """
        import sys
        import jax.numpy as jnp
        from experiments.lib.checkpoint import CheckpointStore
        store = CheckpointStore(sys.argv[1])
        for step in range(10_000):
            store.save(step, {"x": jnp.full((300, 300), step), "step": step})
            print(step, flush=True)
        """
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.stdout.readline().strip() != "3":
            assert process.poll() is None
        # Until its temporary folder is there, the next save has not begun.
        while not list(tmp_path.glob("*tmp*")):
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    store = CheckpointStore(tmp_path)
    latest = store.latest()
    assert latest >= 3
    restored = store.restore(latest, {"x": jnp.zeros((300, 300), jnp.int32), "step": 0})
    assert restored["step"] == latest
    assert (restored["x"] == latest).all()
    store.save(latest + 1, restored)
    assert not list(tmp_path.glob("*tmp*"))
