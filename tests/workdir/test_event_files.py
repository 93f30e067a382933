"""Curves read back from event files, which TensorFlow's own writer has written."""

import pytest

from cmap_jax.workdir.event_files import read_curves


def _write(folder, values, pictures=False):
    import tensorflow as tf

    writer = tf.summary.create_file_writer(str(folder))
    with writer.as_default():
        for step, value in values.items():
            tf.summary.scalar("loss/total", value, step)
            if pictures:
                tf.summary.image("examples", tf.random.uniform((1, 300, 300, 3), seed=0), step)
            tf.summary.text("parameters", "a table", step)
    writer.close()
    return next(p for p in folder.iterdir() if not p.name.endswith(".read"))


def test_numbers_come_back_without_pictures_and_texts(tmp_path):
    _write(tmp_path, {3: 0.25, 7: 1.5}, pictures=True)
    assert read_curves(tmp_path) == {"loss/total": {3: 0.25, 7: 1.5}}


def test_the_later_file_counts_for_a_step_that_was_done_twice(tmp_path):
    first = _write(tmp_path, {3: 1.0, 6: 2.0})
    first.rename(tmp_path / "events.out.tfevents.0000000001.a")
    second = _write(tmp_path / "second", {6: 4.0, 9: 5.0})
    second.rename(tmp_path / "events.out.tfevents.0000000002.a")
    assert read_curves(tmp_path) == {"loss/total": {3: 1.0, 6: 4.0, 9: 5.0}}


@pytest.mark.parametrize("cut", [1, 3, 20])
def test_a_file_that_is_cut_off_is_read_up_to_there(tmp_path, cut):
    import tensorflow as tf

    writer = tf.summary.create_file_writer(str(tmp_path))
    with writer.as_default():
        tf.summary.scalar("a", 1.0, 1)
        tf.summary.scalar("a", 2.0, 2)
    writer.close()
    (path,) = tmp_path.iterdir()
    # The checksum after the last record is four bytes; a record without it is complete.
    path.write_bytes(path.read_bytes()[: -4 - cut])
    assert read_curves(tmp_path) == {"a": {1: 1.0}}


def test_bytes_that_are_no_events_end_a_file(tmp_path):
    path = _write(tmp_path, {3: 1.0})
    path.write_bytes(
        path.read_bytes() + (3).to_bytes(8, "little") + b"\0\0\0\0\xff\xff\xff\0\0\0\0"
    )
    assert read_curves(tmp_path) == {"loss/total": {3: 1.0}}


def test_a_workdir_without_curves(tmp_path):
    assert read_curves(tmp_path) == {}
