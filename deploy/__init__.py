"""How a gateway is deployed and watched: manifests, and the little Python that makes or tries them. Not shipped."""
