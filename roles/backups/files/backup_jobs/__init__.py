"""`remails-backup`: backups of the database, a copy at an independent place, and the proof that both can be restored.

    wal           looks whether what is committed gets into the repository, and whether a piece is missing there
    full          takes a backup into the repository: a full one each week, what has changed since then on the other days
    independent   puts a full copy at the independent place
    drill         restores the newest backup and the newest copy, and looks whether they are whole
    begin         notes that the jobs are set up, so that what has never run is late some time
    status        tells what there is
    find          says which independent copy `restore` would take
    restore       brings a database back, on a host of it, whose server is stopped; playbooks/restore.yml calls it

It runs as the user postgres, by the standard library only: nothing of Remails has to be on a host for it. pgBackRest and restic do
the work. Each job leaves what it said in `state/KIND.json` and, for the node exporter, in `metrics/KIND.prom`.
"""
