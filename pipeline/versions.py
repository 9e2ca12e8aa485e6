"""The version of each step: raise it when the step's outcome changes for the same settings and inputs."""

VERSIONS = {
    "fetch": 4,
    "fetch payload": 2,
    "read": 4,
    "gather": 4,
    "match": 4,
    "coverage": 1,
    "want": 2,
    "sample": 1,
    "sketch": 1,
    "extract": 2,
    "fit": 2,
    "encode": 3,
    "encode payload": 3,
    "objects": 1,
    "shard": 2,
    "lineage": 1,
}
