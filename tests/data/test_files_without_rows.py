"""A data file without rows is an error that names it, whatever its kind; datasets and pyarrow only say "no data"."""

import gzip

import pyarrow
import pyarrow.parquet
import pytest

from trl_dpo_ext.data import DataError, load_splits

FILES = {
    "a.jsonl": b"\n\n",
    "b.json": b"[]",
    "c.csv": b"prompt,chosen,rejected\n",
    "d.jsonl": b"",
    "e.jsonl.gz": gzip.compress(b""),
    "f.parquet": None,
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_a_file_without_rows(name, streaming, tmp_path):
    path = tmp_path / name
    if FILES[name] is None:
        pyarrow.parquet.write_table(pyarrow.table({"prompt": pyarrow.array([], pyarrow.string())}), path)
    else:
        path.write_bytes(FILES[name])
    with pytest.raises(DataError, match=rf"{name}(: the file is empty|[:,] it holds no row)\."):
        load_splits(str(path), streaming=streaming)
