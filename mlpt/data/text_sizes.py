"""How much text is in a packed file, without reading all of it."""

import gzip
import zlib

from pyarrow.parquet import FileMetaData

from mlpt.data.readers import READ_BYTES, open_parquet
from mlpt.storage.files import filesystem, readable_errors

SAMPLED = 1 << 24  # bytes of a gzip file's text that show how much the rest of it is


def parquet_sizes(metadata: FileMetaData) -> list[int]:
    """Bytes of text in each row group of a parquet file, unpacked."""
    sizes = []
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        columns = map(group.column, range(group.num_columns))
        sizes.append(sum(one.total_uncompressed_size for one in columns if one.path_in_schema == "text"))
    return sizes


def parquet_size(path: str) -> int:
    """Bytes of a parquet file's text as it says itself, which is a little more."""
    with readable_errors(path, "read"):
        return sum(parquet_sizes(open_parquet(path).metadata))


def gzip_size(path: str, packed: int) -> int:
    """Bytes of a gzip file's text; of one with more than SAMPLED as its beginning says. `packed`: bytes of the file."""
    fs, inner = filesystem(path)
    read = 0
    with readable_errors(path, "read"), fs.open(inner, "rb") as file, gzip.GzipFile(fileobj=file) as stream:
        try:
            while read < SAMPLED and (chunk := stream.read(READ_BYTES)):
                read += len(chunk)
        except (EOFError, gzip.BadGzipFile, zlib.error):
            return max(read, 1)  # whoever reads on says so
        return max(1, read if read < SAMPLED else int(packed * read / file.tell()))
