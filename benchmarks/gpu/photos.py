"""Photos as encoded bytes, and as Parquet files of any length."""

from pathlib import Path

JPEG = (".jpg", ".jpeg")


def encoded_photos(folder: Path, limit: int | None = None) -> list[bytes]:
    """JPEG files, from Parquet files with a column "image" or from image files, anywhere below the folder.

    Raises FileNotFoundError where there are none.
    """
    import pyarrow.parquet as pq

    found: list[bytes] = []
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".parquet":
            rows = pq.read_table(path, columns=["image"])["image"].to_pylist()
            found += [row["bytes"] for row in rows if row["bytes"][:2] == b"\xff\xd8"]
        elif path.suffix.lower() in JPEG:
            found.append(path.read_bytes())
        if limit is not None and len(found) >= limit:
            break
    if not found:
        raise FileNotFoundError(f"{folder}: no JPEG photos, neither files nor in Parquet files.")
    return found[:limit]


def write_photo_set(photos: list[bytes], folder: Path, num_rows: int, num_files: int = 8) -> Path:
    """Parquet files with these photos, again and again until there are `num_rows`. Decoding takes as long as with as
    many different ones; only reading from the disk does not."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if folder.exists():
        return folder
    staged = folder.with_name(f"{folder.name}.partial")
    (staged / "data").mkdir(parents=True, exist_ok=True)
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    schema = pa.schema({"image": image}).with_metadata(
        {"huggingface": '{"info": {"features": {"image": {"_type": "Image"}}}}'}
    )
    for number in range(num_files):
        rows = [{"bytes": photos[i % len(photos)], "path": None} for i in range(number, num_rows, num_files)]
        table = pa.table({"image": pa.array(rows, type=image)}, schema=schema)
        name = f"train-{number:05d}-of-{num_files:05d}.parquet"
        pq.write_table(table, staged / "data" / name, row_group_size=128, compression="none", use_dictionary=False)
    staged.rename(folder)
    return folder
