"""What `remails-backup` can be asked without a host: gaps in the archive, lost backups, metrics, and how it comes to a place."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from backup_jobs import __main__ as jobs
from backup_jobs import copies, repository, state
from backup_jobs.settings import load_settings
from play import PROJECT, program

fleet = program("filter_plugins/fleet.py")


def archived(*segments: str, of: str = "15-1") -> list[str]:
    """The names in the repository of some segments of WAL, and of what else is there."""
    return [
        *(f"{of}/{name[:16]}/{name}-{'ab' * 20}.zst" for name in segments),
        f"{of}/00000002.history",
        "archive.info",
    ]


def test_timelines_of_two_databases_leave_no_gap_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a restore from the independent place there is a new one, and the repository has the WAL of both."""
    old = archived("00000003000000000000001F", "000000030000000000000022", of="15-1")
    new = archived("00000003000000000000000D", "00000003000000000000000E", of="15-2")
    monkeypatch.setattr(repository, "stored", lambda _: old + new)
    newest = {"database": {"id": 2}, "archive": {"start": "00000003000000000000000D"}}
    assert repository.lacking(newest) == []


def test_no_gap_over_the_end_of_a_log_and_a_new_timeline() -> None:
    names = (
        "0000000100000000000000FE",
        "0000000100000000000000FF",
        "000000010000000100000000",
        "000000020000000100000000",
    )
    assert repository.gaps(archived(*names)) == []


def test_a_gap_is_told_once_for_each_segment_and_only_since_a_backup() -> None:
    there = archived("000000010000000000000002", "000000010000000000000005", "000000010000000000000006")
    lacking = ["000000010000000000000003", "000000010000000000000004"]
    assert repository.gaps(there) == lacking
    assert repository.gaps(there, "000000010000000000000004") == lacking[1:]
    assert repository.gaps(there, "000000010000000000000005") == []
    assert repository.gaps(there, "000000020000000000000005") == [], (
        "what counts is the place in the WAL, whatever the timeline"
    )


def test_a_backup_without_its_files_is_lost() -> None:
    there = [{"label": "20261125-010000F"}, {"label": "20261125-010000F_20261126-010000D"}]
    names = ["20261125-010000F/backup.manifest", "20261125-010000F_20261126-010000D/pg_data/PG_VERSION.zst"]
    assert repository.missing_backups(there, names) == ["20261125-010000F_20261126-010000D"]


def test_metrics_of_a_job_that_failed_after_it_went_well() -> None:
    """In the same second, too: which was the last one is told by the two times alone."""
    text = state.metrics("full", {"success": 1795631014.4, "failure": 1795631014.9, "seconds": 7.2, "says": "no"})
    values = [line for line in text.splitlines() if not line.startswith("#")]
    assert values == [
        'remails_backup_last_success_timestamp_seconds{kind="full"} 1795631014.400',
        'remails_backup_last_failure_timestamp_seconds{kind="full"} 1795631014.900',
        'remails_backup_duration_seconds{kind="full"} 7.200',
    ]
    assert text.count("# TYPE") == 3


def test_a_job_that_only_ever_failed_is_late_too() -> None:
    """An alert compares the two times, so both are there."""
    lines = state.metrics("independent", {"failure": 1795631014.9}).splitlines()
    assert 'remails_backup_last_success_timestamp_seconds{kind="independent"} 0.000' in lines


def remails_backup(settings: Path, word: str) -> "subprocess.CompletedProcess[str]":
    """Run the program by the standard library alone, with pgBackRest in the folder of its settings."""
    command = [sys.executable, "-S", "-m", "backup_jobs", "--settings", settings, word]
    environment = {"PYTHONPATH": str(PROJECT / "roles/backups/files"), "PATH": str(settings.parent)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_jobs_that_are_wanted_no_longer_end_with_their_metrics() -> None:
    """All of them, or the copies that have no place any more."""
    timers = [f"/etc/systemd/system/remails-backup-{kind}.timer" for kind in ("wal", "independent")]
    there = [*timers, "/var/lib/prometheus/node-exporter/backup-independent.prom"]
    assert fleet.former_jobs(there, ["wal", "full", "drill"]) == there[1:]
    assert fleet.former_jobs(there, ["wal", "full", "drill", "independent"]) == []
    assert fleet.former_jobs(there, []) == there


def test_it_runs_as_a_program_and_tells_of_what_was_set_up_and_never_ran(tmp_path: Path) -> None:
    """And a job that does not go well ends with a sentence."""
    settings = tmp_path / "settings.toml"
    settings.write_text(f'programs = "/nowhere"\nfolder = "{tmp_path}"\n', encoding="utf-8")
    for name in ("state", "metrics"):
        (tmp_path / name).mkdir()
    (tmp_path / "pgbackrest").write_text("#!/bin/sh\necho 'no way' >&2; exit 3\n", encoding="utf-8")
    (tmp_path / "pgbackrest").chmod(0o755)
    assert json.loads(remails_backup(settings, "begin").stdout) == ["wal", "full", "drill"]
    assert remails_backup(settings, "begin").stdout == ""
    failed = remails_backup(settings, "full")
    assert (failed.returncode, failed.stderr) == (1, "full failed: pgbackrest ended with 3: no way\n")
    said = json.loads(remails_backup(settings, "status").stdout)
    assert said["wal"]["success"] > 0
    assert (said["full"]["says"], said["independent"]) == ("pgbackrest ended with 3: no way", {})
    assert 'last_failure_timestamp_seconds{kind="full"} 0' not in (tmp_path / "metrics/full.prom").read_text("utf-8")
    with settings.open("a", encoding="utf-8") as file:
        file.write('place = "/elsewhere"\n')
    assert json.loads(remails_backup(settings, "begin").stdout) == ["independent"]
    assert json.loads(remails_backup(settings, "status").stdout)["full"] == said["full"]


def test_a_restore_does_not_begin_beside_a_job(tmp_path: Path) -> None:
    """On a host that has the database and its backups they use the same folders."""
    settings = tmp_path / "settings.toml"
    settings.write_text(f'programs = "/nowhere"\nfolder = "{tmp_path}"\ndata = "{tmp_path}"\n', encoding="utf-8")
    (tmp_path / "postmaster.pid").touch()
    with jobs.alone(load_settings(settings)):
        assert "a backup or a drill runs on this host" in remails_backup(settings, "restore").stderr
    assert f"a server runs on {tmp_path}" in remails_backup(settings, "restore").stderr


@pytest.mark.parametrize(
    ("place", "ends", "where"),
    [
        ("sftp:me@copies.example.net:/x", "-p 22 -l me copies.example.net -s sftp", ("copies.example.net", 22)),
        ("sftp://me@[2001:db8::1]:2222//x", "-p 2222 -l me 2001:db8::1 -s sftp", ("2001:db8::1", 2222)),
        ("s3:https://s3.example.net/bucket", None, ("s3.example.net", 443)),
        ("s3:http://192.0.2.1:9000/bucket", None, ("192.0.2.1", 9000)),
        ("rest:https://me:pw@rest.example.net:8000/", None, ("rest.example.net", 8000)),
        ("none", None, None),
    ],
)
def test_how_to_come_to_the_independent_place(place: str, ends: str | None, where: tuple[str, int] | None) -> None:
    words = copies.by_ssh(place, Path("/run/key"))
    if ends is None:
        assert words == []
    else:
        assert words[1].startswith("sftp.command=ssh -i /run/key ")
        assert "StrictHostKeyChecking=yes" in words[1]
        assert words[1].endswith(ends)
    found = fleet.backup_place(place)
    assert (found.get("host"), found.get("port")) == (where or (None, None))
