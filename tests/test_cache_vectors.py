import mmap
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cache.files import write_atomically
from cache.vectors import RMS, list_view, map_vectors, read_ids, read_scalar, write_part

GENERATOR = np.random.default_rng(0)


def is_mapped(array: np.ndarray) -> bool:
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(base.obj, mmap.mmap) if isinstance(base, memoryview) else isinstance(base, mmap.mmap)


@pytest.mark.parametrize(("dtype", "rows"), [(np.float16, 1), (np.float16, 30_000), (np.float32, 1000)])
def test_vectors_come_back_bit_for_bit_from_the_memory_map(tmp_path: Path, dtype: type, rows: int) -> None:
    matrix = GENERATOR.standard_normal((rows, 24)).astype(dtype)
    ids = [f"id{row}" for row in range(rows)]
    write_part(tmp_path / "p.parquet", ids, {"L1.last": matrix}, {})
    found = map_vectors(tmp_path / "p.parquet", "L1.last")
    assert found.dtype == dtype
    assert is_mapped(found)
    assert np.array_equal(found, matrix)
    assert read_ids(tmp_path / "p.parquet") == ids


def test_other_layouts_are_read_by_copy(tmp_path: Path) -> None:
    matrix = GENERATOR.standard_normal((500, 8)).astype(np.float16)
    write_part(tmp_path / "p.parquet", [str(row) for row in range(500)], {"L1.last": matrix}, {})
    table = pq.read_table(tmp_path / "p.parquet")
    for name, options in {
        "compressed": {"compression": "snappy"},
        "dictionary": {"compression": "none", "use_dictionary": True},
        "groups": {"compression": "none", "use_dictionary": False, "row_group_size": 100},
        "pages": {"compression": "none", "use_dictionary": False, "data_page_size": 64, "write_batch_size": 10},
    }.items():
        path = tmp_path / f"{name}.parquet"
        pq.write_table(table, path, **options)
        found = map_vectors(path, "L1.last")
        assert not is_mapped(found), name
        assert np.array_equal(found, matrix), name


def test_scalars_and_rms_are_columns_beside(tmp_path: Path) -> None:
    matrix = np.ones((3, 4), dtype=np.float16)
    scalars = {"tokens": np.array([5, 6, 7], dtype=np.int32), "L1.last" + RMS: np.array([1.5, 2, 3], dtype=np.float32)}
    write_part(tmp_path / "p.parquet", ["a", "b", "c"], {"L1.last": matrix}, scalars)
    assert read_scalar(tmp_path / "p.parquet", "tokens").tolist() == [5, 6, 7]
    assert read_scalar(tmp_path / "p.parquet", "L1.last" + RMS).tolist() == [1.5, 2, 3]


def test_list_view_has_the_same_values(tmp_path: Path) -> None:
    matrix = GENERATOR.standard_normal((5, 4)).astype(np.float16)
    write_part(tmp_path / "p.parquet", list("abcde"), {"L1.last": matrix}, {})
    view = list_view(tmp_path / "p.parquet", "L1.last")
    assert view.schema.field("L1.last").type == pa.list_(pa.float16(), 4)
    assert view["L1.last"].to_pylist() == matrix.tolist()


def test_an_unknown_feature_lists_those_there_are(tmp_path: Path) -> None:
    write_part(tmp_path / "p.parquet", ["a"], {"L1.last": np.ones((1, 2), np.float16)}, {})
    with pytest.raises(ValueError, match=r"no feature 'L9\.last'; it has L1\.last"):
        map_vectors(tmp_path / "p.parquet", "L9.last")


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["f"]
