//! gRPC's (gRFC A27, A29, A36, A65): one server, certificates by the `file_watcher` plugin.
//!
//! Through the relay the channel is plaintext on loopback. Directly it is mTLS with the same files; gRPC verifies the host
//! of the URI then, so the control plane must be addressed by its DNS name.

use serde_json::{Value, json};
use tulle_runtime::names::agent;

use super::{Upstream, node_id};
use crate::args::{Client, Place};
use crate::files::CredentialFiles;

/// How often gRPC looks whether the files changed.
const REFRESH: &str = "5s";

pub(super) fn bootstrap(place: &Place, files: &CredentialFiles, upstream: &Upstream) -> Value {
    let certificates = json!({
        "certificate_file": files.path(agent::CERT),
        "private_key_file": files.path(agent::KEY),
        "ca_certificate_file": files.path(agent::ROOTS),
        "refresh_interval": REFRESH,
    });
    let insecure = json!({ "type": "insecure" });
    let (uri, credentials) = match upstream {
        Upstream::Direct(address) => (
            format!("dns:///{address}"),
            json!({ "type": "tls", "config": certificates }),
        ),
        Upstream::Relay(address) => (address.to_string(), insecure),
        Upstream::Socket(path) => (format!("unix://{}", path.display()), insecure),
    };
    json!({
        "xds_servers": [{
            "server_uri": uri,
            "channel_creds": [credentials],
            "server_features": ["xds_v3"],
        }],
        // Whole, because some clients cannot do without the parts that say nothing.
        "node": {
            "id": node_id(Client::Grpc, place),
            "cluster": format!("{}.{}", place.id.service_account(), place.id.namespace()),
            "locality": { "region": "", "zone": "", "sub_zone": "" },
            "metadata": {},
        },
        "certificate_providers": {
            agent::CERTIFICATE_PROVIDER: { "plugin_name": "file_watcher", "config": certificates },
        },
        "server_listener_resource_name_template": agent::SERVER_LISTENER_TEMPLATE,
    })
}
