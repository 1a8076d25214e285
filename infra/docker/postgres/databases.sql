-- Run once, when the data folder is new: beside MLflow's runs, its users, and the studies of `vesalius tune`.
CREATE DATABASE users;
CREATE DATABASE studies;
