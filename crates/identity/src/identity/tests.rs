//! A live identity under connections: handshakes before, during and after a rotation.

use rustls::ProtocolVersion;
use rustls_pki_types::ServerName;
use std::io;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::*;
use crate::issue::{CsrPolicy, IssueRequest, Issuer};
use crate::testing::{domain, id, issuer, root};
use crate::tls::mesh_server_name;
use crate::verify::{self, peer_id};

type Client = client::TlsStream<DuplexStream>;
type Server = server::TlsStream<DuplexStream>;

async fn handshake(
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    name: ServerName<'static>,
) -> (io::Result<Client>, io::Result<Server>) {
    let (near, far) = tokio::io::duplex(64 * 1024);
    tokio::join!(
        TlsConnector::from(client).connect(name, near),
        TlsAcceptor::from(server).accept(far)
    )
}

async fn mesh_handshake(
    client: &Identity,
    ids: &[SpiffeId],
    server: &Identity,
) -> (io::Result<Client>, io::Result<Server>) {
    let config = client.current().client(ids, alpn::HTTP1);
    handshake(
        config,
        server.current().mesh_server().clone(),
        mesh_server_name(),
    )
    .await
}

fn identity(issuer: &Issuer, account: &str) -> Identity {
    Identity::new(issuer.svid(&id(account)), issuer.bundle().clone())
}

fn client_id(server: &Server) -> SpiffeId {
    peer_id(server.get_ref().1.peer_certificates().unwrap()).unwrap()
}

fn server_serial(client: &Client) -> String {
    let chain = client.get_ref().1.peer_certificates().unwrap();
    crate::svid::serial(&crate::svid::parse(&chain[0]).unwrap())
}

async fn echo(client: &mut Client, server: &mut Server) {
    client.write_all(b"ping").await.unwrap();
    client.flush().await.unwrap();
    let mut bytes = [0; 4];
    server.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"ping");
}

fn refusal<T>(result: io::Result<T>) -> String {
    let error = result.map(|_| ()).expect_err("the handshake should fail");
    let words = verify::refusal(&error)
        .expect("we refused the peer")
        .to_string();
    assert!(error.to_string().contains(&words), "{error}");
    words
}

#[tokio::test]
async fn peers_know_each_other_after_the_handshake() {
    let issuer = issuer();
    let (web, api) = (identity(&issuer, "web"), identity(&issuer, "api"));
    let (client, server) = mesh_handshake(&web, &[id("api")], &api).await;
    let (mut client, mut server) = (client.unwrap(), server.unwrap());
    assert_eq!(client_id(&server), id("web"));
    let session = client.get_ref().1;
    assert_eq!(session.alpn_protocol(), Some(alpn::HTTP1));
    assert_eq!(session.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(
        session.negotiated_cipher_suite().unwrap().suite(),
        rustls::CipherSuite::TLS13_AES_128_GCM_SHA256
    );
    assert_eq!(
        session.negotiated_key_exchange_group().unwrap().name(),
        rustls::NamedGroup::X25519MLKEM768
    );
    echo(&mut client, &mut server).await;
    assert_eq!(client.get_ref().1.tls13_tickets_received(), 0);
}

#[tokio::test]
async fn a_server_that_is_not_expected_is_refused_by_name() {
    let issuer = issuer();
    let (web, api) = (identity(&issuer, "web"), identity(&issuer, "api"));
    let (client, server) = mesh_handshake(&web, &[id("db")], &api).await;
    let words = refusal(client);
    assert!(
        words.contains("the peer is spiffe://mesh.test/ns/shop/sa/api"),
        "{words}"
    );
    assert!(server.is_err());
}

#[tokio::test]
async fn clients_of_another_mesh_are_refused() {
    let issuer = issuer();
    let api = identity(&issuer, "api");
    // Even when its root is trusted, for whatever reason.
    let evil = TrustDomain::new("evil.test").unwrap();
    let other = Issuer::new(
        crate::Root::generate(&evil, 24 * crate::testing::HOUR).unwrap(),
        [],
        CsrPolicy::default(),
    )
    .unwrap();
    api.trust(issuer.bundle().with(other.root().cert().clone()).unwrap());
    let stranger = SpiffeId::new(&evil, "shop", "web").unwrap();
    let stranger = Identity::new(other.svid(&stranger), issuer.bundle().clone());
    let (_, server) = mesh_handshake(&stranger, &[id("api")], &api).await;
    let words = refusal(server);
    assert!(
        words.contains("its trust domain is not accepted"),
        "{words}"
    );
    // An unknown root is not even looked at.
    let unknown = identity(&self::issuer(), "web");
    unknown.trust(issuer.bundle().clone());
    let (_, server) = mesh_handshake(&unknown, &[id("api")], &api).await;
    assert!(refusal(server).contains("not signed by a root"));
}

#[tokio::test]
async fn expired_and_future_clients_are_refused() {
    let issuer = issuer();
    let api = identity(&issuer, "api");
    for (hours_ago, words) in [(3, "expired"), (-1, "not valid for another")] {
        let svid = issuer.svid_issued(&id("web"), hours_ago);
        assert!(check(&svid, issuer.bundle()).is_err());
        let web = Identity::new(svid, issuer.bundle().clone());
        let (_, server) = mesh_handshake(&web, &[id("api")], &api).await;
        let got = refusal(server);
        assert!(got.contains(words), "{got}");
    }
}

#[tokio::test]
async fn a_client_without_a_certificate_passes_only_where_it_is_optional() {
    let issuer = issuer();
    let names = ["control.test"];
    let svid = issuer
        .issue_svid(&IssueRequest {
            dns_names: &names,
            ..IssueRequest::new(&id("control"))
        })
        .unwrap();
    let control = Identity::new(svid, issuer.bundle().clone()).current();
    let name = ServerName::try_from("control.test").unwrap();
    for (auth, passes) in [
        (ClientAuth::Required, false),
        (ClientAuth::Optional, true),
        (ClientAuth::None, true),
    ] {
        let anonymous = Arc::new(tls::client_by_name(None, issuer.bundle(), b"h2"));
        let (_, server) = handshake(anonymous, control.server(auth, &[b"h2"]), name.clone()).await;
        assert_eq!(server.is_ok(), passes, "{auth:?}");
    }
    let web = identity(&issuer, "web").current().client_by_name(b"h2");
    let (client, server) = handshake(
        web.clone(),
        control.server(ClientAuth::Optional, &[b"h2"]),
        name,
    )
    .await;
    client.unwrap();
    assert_eq!(client_id(&server.unwrap()), id("web"));
    let other = ServerName::try_from("other.test").unwrap();
    let (client, _) = handshake(web, control.server(ClientAuth::Optional, &[b"h2"]), other).await;
    assert!(client.is_err(), "another DNS name");
}

#[tokio::test]
async fn protocols_that_do_not_overlap_end_the_handshake() {
    let issuer = issuer();
    let (web, api) = (identity(&issuer, "web"), identity(&issuer, "api"));
    let client = web.current().client(&[id("api")], b"h2");
    let (_, server) = handshake(
        client.clone(),
        api.current().mesh_server().clone(),
        mesh_server_name(),
    )
    .await;
    assert!(server.is_err());
    let (client, server) = handshake(
        client,
        api.current().foreign_server().clone(),
        mesh_server_name(),
    )
    .await;
    assert_eq!(
        client.unwrap().get_ref().1.alpn_protocol(),
        Some(&b"h2"[..])
    );
    server.unwrap();
}

#[tokio::test]
async fn tls_1_2_is_not_spoken() {
    let issuer = issuer();
    let api = identity(&issuer, "api");
    let mut old = ClientConfig::builder_with_provider(Arc::new(
        rustls::crypto::aws_lc_rs::default_provider(),
    ))
    .with_protocol_versions(&[&rustls::version::TLS12])
    .unwrap()
    .with_root_certificates(issuer.bundle().store())
    .with_no_client_auth();
    old.alpn_protocols = vec![alpn::HTTP1.to_vec()];
    let server = api.current().mesh_server().clone();
    let (client, server) = handshake(Arc::new(old), server, mesh_server_name()).await;
    assert!(client.is_err());
    let error = server.unwrap_err().to_string();
    assert!(error.contains("Tls12NotOffered"), "{error}");
}

#[tokio::test]
async fn a_rotation_keeps_live_connections_and_shows_in_new_ones() {
    let issuer = issuer();
    let (web, api) = (identity(&issuer, "web"), identity(&issuer, "api"));
    let (client, server) = mesh_handshake(&web, &[id("api")], &api).await;
    let (mut client, mut server) = (client.unwrap(), server.unwrap());
    let before = server_serial(&client);

    let mut changed = api.changed();
    changed.mark_unchanged();
    let fresh = issuer.svid(&id("api"));
    api.rotate(fresh.clone()).unwrap();
    assert!(changed.has_changed().unwrap());
    assert_eq!(api.load().generation(), 1);

    echo(&mut client, &mut server).await;
    assert_eq!(server_serial(&client), before);
    let (client, _) = mesh_handshake(&web, &[id("api")], &api).await;
    assert_eq!(server_serial(&client.unwrap()), fresh.serial());
}

#[tokio::test]
async fn roots_rotate_by_overlap_and_a_dropped_root_is_refused() {
    let old = issuer();
    let (web, api) = (identity(&old, "web"), identity(&old, "api"));
    let new = Issuer::new(root(), [old.root().cert().clone()], CsrPolicy::default()).unwrap();
    // Both trust both, then one has a leaf of the new root and the other has not.
    web.trust(new.bundle().clone());
    api.trust(new.bundle().clone());
    api.rotate(new.svid(&id("api"))).unwrap();
    let (client, server) = mesh_handshake(&web, &[id("api")], &api).await;
    assert!(client.is_ok() && server.is_ok());
    let (client, server) = mesh_handshake(&api, &[id("web")], &web).await;
    assert!(client.is_ok() && server.is_ok());
    // The old root goes: a leaf of it is refused, and may not be installed any more.
    api.trust(TrustBundle::new([new.root().cert().clone()]).unwrap());
    let (_, server) = mesh_handshake(&web, &[id("api")], &api).await;
    assert!(refusal(server).contains("not signed by a root"));
    assert!(api.rotate(old.svid(&id("api"))).is_err());
    assert!(api.current().check().is_ok());
}

#[test]
fn an_identity_does_not_become_another_and_ignores_what_is_not_new() {
    let issuer = issuer();
    let web = identity(&issuer, "web");
    assert!(matches!(
        web.rotate(issuer.svid(&id("api"))),
        Err(Error::OtherIdentity { .. })
    ));
    assert!(matches!(
        web.rotate(issuer.svid_issued(&id("web"), 5)),
        Err(Error::Chain(_))
    ));
    web.trust(issuer.bundle().clone());
    assert_eq!(web.load().generation(), 0);
    assert_eq!(web.id().trust_domain(), domain());
}
