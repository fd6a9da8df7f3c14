"""A run's log file: it takes what mlpt logs, leaves the calling program's logging alone, and fails in silence."""

import logging

from mlpt.logs import log_to_file, logging_to_file


def test_a_program_logs_as_before_after_a_run_in_its_process(tmp_path):
    logger = logging.getLogger("mlpt")
    own = logging.NullHandler()
    logger.addHandler(own)
    before = (logger.handlers[:], logger.level, logger.propagate)
    try:
        with logging_to_file(tmp_path / "logs" / "rank_0.log"):
            logging.getLogger("mlpt.anything").info("in the run")
        assert (logger.handlers, logger.level, logger.propagate) == before
    finally:
        logger.removeHandler(own)
    logging.getLogger("mlpt.anything").error("after it")
    text = (tmp_path / "logs" / "rank_0.log").read_text()
    assert "in the run" in text
    assert "after it" not in text


def test_a_log_on_a_full_disk_prints_no_traceback(tmp_path, capsys):
    logger = logging.getLogger("mlpt")
    before = (logger.handlers[:], logger.level, logger.propagate)
    (tmp_path / "full.log").symlink_to("/dev/full")
    log_to_file(tmp_path / "full.log")
    try:
        logging.getLogger("mlpt.anything").info("x")
    finally:
        logger.handlers[:], logger.level, logger.propagate = before
    assert capsys.readouterr() == ("", "")
