#!/bin/sh
# Runs once, when the sample plant's cluster is made: lets the node read it over replication, and puts a table in.
set -eu
echo 'host replication postgres samenet scram-sha-256' >> "$PGDATA/pg_hba.conf"
psql --no-psqlrc --set=ON_ERROR_STOP=1 --username=postgres --dbname=plant <<'SQL'
CREATE TABLE account_move_line (id bigserial PRIMARY KEY, debit numeric NOT NULL, credit numeric NOT NULL);
INSERT INTO account_move_line (debit, credit) SELECT n, n FROM generate_series(1, 500) AS n;
SQL
