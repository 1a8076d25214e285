-- Run once, when the data folder is new: beside MLflow's runs, its users, and the studies of `vesalius tune`, whose role
-- reaches nothing else: whoever computes does not hold the password of MLflow's database.
\set password `cat /run/secrets/studies_password`
CREATE ROLE studies LOGIN PASSWORD :'password';
CREATE DATABASE users;
CREATE DATABASE studies OWNER studies;
REVOKE CONNECT ON DATABASE mlflow, users FROM PUBLIC;
