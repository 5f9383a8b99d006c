"""Bucket policies as docs/operations.md gives them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

WRITER = [
    "s3:ListBucket", "s3:ListBucketVersions", "s3:GetObject", "s3:GetObjectVersion", "s3:PutObject",
    "s3:PutObjectRetention", "s3:GetObjectRetention",
    "s3:GetBucketVersioning", "s3:GetBucketObjectLockConfiguration", "s3:GetLifecycleConfiguration",
]  # fmt: skip
PRUNER = [*WRITER, "s3:DeleteObjectVersion"]


def policy(bucket: str, users: Mapping[str, Sequence[str]]) -> str:
    """A policy by which Ceph's users may do these actions and no others."""
    statements = [
        {
            "Effect": "Allow",
            "Principal": {"AWS": [f"arn:aws:iam:::user/{user}"]},
            "Action": list(actions),
            "Resource": [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"],
        }
        for user, actions in users.items()
    ]
    return json.dumps({"Version": "2012-10-17", "Statement": statements})
