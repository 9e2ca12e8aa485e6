"""The version of each step: raise it when the step's outcome changes for the same settings and inputs."""

VERSIONS = {
    "fetch": 2,
    "read": 3,
    "gather": 3,
    "match": 3,
    "coverage": 1,
    "want": 2,
    "sample": 1,
    "extract": 1,
    "fit": 2,
    "encode": 2,
    "encode payload": 2,
    "objects": 1,
    "shard": 2,
}
