# SPDX-License-Identifier: Apache-2.0
"""Prepared TFDS data sets without TensorFlow: sequences of images, and `Video` as TensorFlow would have
written it."""

from __future__ import annotations

import io
import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from jaxvid.data.clips import ClipShape
from jaxvid.data.pipeline import Bucket, batches
from jaxvid.data.tfds_source import TfdsSource
from jaxvid.types import InputError

SHAPE = ClipShape(6, 12, 16, 10.0)


def png(value):
    file = io.BytesIO()
    Image.fromarray(np.full((12, 16, 3), value, np.uint8)).save(file, "PNG")
    return io.BytesIO(file.getvalue())


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Five films; frame k of film i has the gray 10 i + 4 k; the film is 8 + i frames long."""
    import tensorflow_datasets as tfds

    class Films(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            frame = tfds.features.Image(shape=(12, 16, 3), encoding_format="png")
            features = {
                "video": tfds.features.Sequence(frame),
                "array": tfds.features.Tensor(shape=(2, 12, 16, 1), dtype=np.uint8, encoding="zlib"),
                "text": tfds.features.Text(),
                "label": tfds.features.ClassLabel(names=["slow", "fast"]),
                "number": np.int64,
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            return {"train": self._generate_examples(5), "test": self._generate_examples(2)}

        def _generate_examples(self, count):
            for i in range(count):
                yield (
                    i,
                    {
                        "video": [png(10 * i + 4 * k) for k in range(8 + i)],
                        "array": np.full((2, 12, 16, 1), 10 * i, np.uint8),
                        "text": f"film {i} żółć",
                        "label": i % 2,
                        "number": i,
                    },
                )

    builder = Films(data_dir=tmp_path_factory.mktemp("tfds"), file_format="array_record")
    builder.download_and_prepare()
    return builder.data_dir


@pytest.fixture(scope="module", params=["Sequence", "Video"])
def directory(prepared, request, tmp_path_factory):
    """The same records, described as a sequence of images or as a `Video`."""
    if request.param == "Sequence":
        return prepared
    copy = tmp_path_factory.mktemp("video") / "films" / "1.0.0"
    shutil.copytree(prepared, copy)
    described = json.loads((copy / "features.json").read_text())
    described["featuresDict"]["features"]["video"] = {
        "pythonClassName": "tensorflow_datasets.core.features.video_feature.Video",
        "video": {
            "shape": {"dimensions": ["-1", "12", "16", "3"]},
            "dtype": "uint8",
            "encodingFormat": "png",
        },
    }
    (copy / "features.json").write_text(json.dumps(described))
    return copy


def films(source):
    """Which film each clip is of, by its caption."""
    return [int(source.clip(i, SHAPE).captions[0][1].split()[1]) for i in range(len(source))]


def test_clips_and_captions(directory):
    source = TfdsSource(directory, fps=10, caption="text")
    assert len(source) == 5 and sorted(films(source)) == list(range(5))
    for index, film in enumerate(films(source)):
        sample = source.clip(index, SHAPE)
        assert sample.x.shape == (6, 12, 16, 3) and sample.x.dtype == np.uint8
        assert sample.captions == ((0, f"film {film} żółć"),)
        first = (int(sample.x[0, 0, 0, 0]) - 10 * film) // 4
        assert sample.x[:, 0, 0, 0].tolist() == [10 * film + 4 * (first + k) for k in range(6)]
    assert source.bad == {}
    assert not any(name.split(".")[0] == "tensorflow" for name in sys.modules)


def test_several_clips_of_a_film_span_it(directory):
    source = TfdsSource(directory, fps=10, caption="text", clips=3)
    assert len(source) == 15
    for index in range(0, 15, 3):
        clips = [source.clip(index + turn, SHAPE) for turn in range(3)]
        film = int(clips[0].captions[0][1].split()[1])
        assert clips[0].x[0, 0, 0, 0] == 10 * film
        assert clips[2].x[-1, 0, 0, 0] == 10 * film + 4 * (7 + film)
    assert len({source.key(i, SHAPE) for i in range(15)}) == 15
    assert source.key(3, SHAPE) == TfdsSource(directory, fps=10, caption="text", clips=3).key(3, SHAPE)


def test_rates_and_short_films(directory):
    source = TfdsSource(directory, fps=10, caption="text")
    film = films(source)[0]
    slow = source.clip(0, ClipShape(3, 12, 16, 5.0)).x[:, 0, 0, 0].astype(int)
    assert np.diff(slow).tolist() == [8, 8]
    whole = source.clip(0, ClipShape(100, 12, 16, 20.0)).x[:, 0, 0, 0]
    assert whole.tolist() == [10 * film + 4 * (k // 2) for k in range(2 * (8 + film))]
    assert source.clip(0, ClipShape(1, 6, 6, 10.0)).x.shape == (1, 6, 6, 3)


def test_other_features(prepared):
    source = TfdsSource(prepared, "test", fps=10, video="array", caption="label")
    assert len(source) == 2
    sample = source.clip(0, SHAPE)
    assert sample.x.shape == (2, 12, 16, 3) and sample.captions[0][1] in ("slow", "fast")
    assert (
        TfdsSource(prepared, "train[:40%]", fps=10, caption="number").clip(0, SHAPE).captions[0][1].isdigit()
    )


def test_through_batches(directory):
    with batches(TfdsSource(directory, fps=10), [Bucket(5, 12, 16, batch=2)], fps=10, seed=0) as data:
        video, cond = next(data)
    assert video.x.shape == (2, 5, 12, 16, 3) and video.ok.all() and not cond["tokens"].any()


def test_a_damaged_record_is_replaced(prepared, tmp_path):
    copy = tmp_path / "films" / "1.0.0"
    shutil.copytree(prepared, copy)
    whole = TfdsSource(prepared, fps=10, caption="text")
    (path,) = copy.glob("*train*")
    data = bytearray(path.read_bytes())
    at = data.rindex(b"\x89PNG")  # a frame of the last record
    data[at + 40] ^= 255
    path.write_bytes(data)
    source = TfdsSource(copy, fps=10, caption="text")
    got, want = films(source), films(whole)
    assert sum(a != b for a, b in zip(got, want, strict=True)) == 1 and len(source.bad) == 1
    assert films(TfdsSource(copy, fps=10, caption="text")) == got


def test_bad_requests(prepared, tmp_path):
    for words, directory, options in (
        ("not a prepared", tmp_path, {}),
        ("not a prepared", tmp_path / "none", {}),
        ("no feature 'titel'", prepared, {"caption": "titel"}),
        ("use video='", prepared, {"video": "text"}),
        ("fps=0", prepared, {"fps": 0}),
        ("cannot read split", prepared, {"split": "validation"}),
    ):
        with pytest.raises(InputError, match=words) as error:
            TfdsSource(directory, **{"fps": 10, **options})
        assert "\n" not in str(error.value)
