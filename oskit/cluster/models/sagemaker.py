"""What Amazon SageMaker needs to run an export: its files, an image, and the connectors that reach it.

SageMaker starts a container with the argument ``serve``, puts what ``model.tar.gz`` holds below
``/opt/ml/model``, and asks ``GET /ping`` and ``POST /invocations`` at port 8080: ``oskit serve --sagemaker``.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from oskit.archive.manifest import MANIFEST_NAME
from oskit.cluster.models.connectors import Remote, connector_body

if TYPE_CHECKING:
    from oskit.archive.archive import Archive

_REGION = "us-east-1"
_ROLE = "arn:aws:iam::ACCOUNT:role/ROLE"

_IMAGE = """\
# What SageMaker runs: docker/serve.Dockerfile makes oskit-serve.
FROM oskit-serve
# SageMaker gives the argument "serve", which sh takes for its own name.
ENTRYPOINT ["sh", "-c", "exec oskit serve /opt/ml/model --sagemaker"]
"""

_STEPS = """\
# {name} on Amazon SageMaker

ACCOUNT, REGION, BUCKET and ROLE are yours. ROLE is one that SageMaker may take on (AmazonSageMakerFullAccess,
or what it needs of that: S3, ECR, CloudWatch).

```bash
docker build -f docker/serve.Dockerfile -t oskit-serve .        # in oskit's repository
docker build -t ACCOUNT.dkr.ecr.REGION.amazonaws.com/oskit-sagemaker .
docker push ACCOUNT.dkr.ecr.REGION.amazonaws.com/oskit-sagemaker
aws s3 cp model.tar.gz s3://BUCKET/{name}/model.tar.gz
aws sagemaker create-model --model-name {name} --execution-role-arn arn:aws:iam::ACCOUNT:role/ROLE \\
  --primary-container \\
  Image=ACCOUNT.dkr.ecr.REGION.amazonaws.com/oskit-sagemaker,ModelDataUrl=s3://BUCKET/{name}/model.tar.gz
aws sagemaker create-endpoint-config --endpoint-config-name {name} \\
  --production-variants VariantName=all,ModelName={name},InstanceType=ml.c7i.xlarge,InitialInstanceCount=1
aws sagemaker create-endpoint --endpoint-name {name} --endpoint-config-name {name}
```

Then, for a cluster of Amazon OpenSearch Service, as somebody who may pass the role (`iam:PassRole`) that may
invoke the endpoint (`sagemaker:InvokeEndpoint`):

```bash
oskit deploy EXPORT --url https://DOMAIN --aws-region REGION --role-arn arn:aws:iam::ACCOUNT:role/INVOKER \\
  --remote https://runtime.sagemaker.REGION.amazonaws.com/endpoints/{name}/invocations
```

That sends the bodies of connector*.json, and proves that the cluster gets the archive's weights.
"""


FOLDER = "sagemaker"

FILES = ("model.tar.gz", "Dockerfile", "README.md", "connector.json", "connector-query.json")


def write_bundle(archives: Sequence[Archive], output_dir: Path) -> None:
    """The archives of an export for SageMaker: ``model.tar.gz``, ``Dockerfile``, connectors and the steps.

    Args:
        archives: An encoder, and its tokenizer if it is inference-free. Of two formats ONNX is taken.
        output_dir: Where to make the folder :data:`FOLDER` with these :data:`FILES`.
    """
    encoders = [one for one in archives if one.kind == "encoder"]
    chosen = [next((one for one in encoders if one.model_format == "ONNX"), encoders[0])]
    chosen += [one for one in archives if one.kind == "tokenizer"]
    name = re.sub(r"[^A-Za-z0-9-]+", "-", chosen[0].name).strip("-")[:63]
    model, image, steps, *connectors = ((output_dir / FOLDER) / file for file in FILES)
    model.parent.mkdir()
    with tarfile.open(model, "w:gz", compresslevel=1) as tar:
        for archive in chosen:
            for path in (archive.path, archive.path.with_name(MANIFEST_NAME)):
                tar.add(path, f"{path.parent.name}/{path.name}")
    image.write_text(_IMAGE, encoding="utf-8")
    steps.write_text(_STEPS.format(name=name), encoding="utf-8")
    for archive, path in zip(chosen, connectors, strict=False):
        url = f"https://runtime.sagemaker.{_REGION}.amazonaws.com/endpoints/{name}/invocations"
        body = connector_body(archive, Remote(url, role_arn=_ROLE), archive.name)
        path.write_text(json.dumps(body, indent=2).replace(_REGION, "REGION") + "\n", encoding="utf-8")
