"""The embedded cluster: a Kubernetes API server small enough to read, for machines that have no cluster.

It keeps the promises that Hawse relies on: optimistic locking by ``resourceVersion``, watches that resume or say 410,
admission webhooks over TLS, finalizers, namespaces that terminate, and custom resources with schemas. The reference is
Kubernetes 1.36; ``tests/contract/apiserver`` states each promise and is written so that a real server can take the same
tests.

What it is not, and says when asked:

- No RBAC: roles and bindings are stored and not evaluated; every token of ``tokens.csv`` may do everything.
- No server-side apply and no ``managedFields`` (415); ``kubectl apply`` without ``--server-side`` works.
- No garbage collector: ``ownerReferences`` are stored and not followed; ``propagationPolicy`` changes nothing.
- No CEL: ``x-kubernetes-validations`` and ``matchConditions`` are stored and not evaluated. A webhook is called more
  often than by a real server, and must itself pass what its conditions would keep from it.
- No conversion webhooks: the versions of a custom resource differ in ``apiVersion`` alone.
- No service network: a webhook with ``clientConfig.service`` is refused, use ``clientConfig.url``.
- ``matchPolicy`` is stored and not acted upon.
- Built-in kinds other than webhook configurations and CRDs are stored without a schema.
- No kubelet, scheduler or controllers; the namespace controller beside it is an ordinary client of the API.
"""
