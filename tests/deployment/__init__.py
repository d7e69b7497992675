"""Real deployments: a SuperLink with TLS and authentication, and SuperNodes with files of their own."""
