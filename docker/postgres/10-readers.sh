#!/bin/sh
# Runs once, when the database is first made: the role that the views are granted to, and Grafana's login.
set -eu
psql --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" --set password="$GRAFANA_DATABASE_PASSWORD" <<'SQL'
create role gauntlet_reader nologin;
create role grafana login password :'password' in role gauntlet_reader;
alter role grafana set default_transaction_read_only = on;
alter role grafana set statement_timeout = '30s';
SQL
