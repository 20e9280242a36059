"""The witness file: taken once, and only by those who see the storage on which the job formed."""

from elaswave.coordination.witness import file_witness


def test_only_the_first_takes_it(tmp_path):
    one, other = file_witness(tmp_path, "one"), file_witness(tmp_path, "other")
    assert one("job-0") is True
    assert other("job-1") is True
    assert one("job-1") is False
    assert one("job-2") is True
    assert (tmp_path / "witness" / "job-1").read_text() == "other\n"


def test_storage_that_is_not_shared_is_no_witness(tmp_path):
    one, other = file_witness(tmp_path / "one", "one"), file_witness(tmp_path / "other", "other")
    assert one("job-0") is True
    assert other("job-1") is None
    assert one("job-1") is True


def test_without_a_folder_there_is_no_witness(tmp_path):
    assert file_witness(None, "one")("job-0") is None
    (tmp_path / "file").write_text("")
    assert file_witness(tmp_path / "file", "one")("job-0") is None
