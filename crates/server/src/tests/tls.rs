//! TCP with TLS: both versions of HTTP, and callers who speak none of it.

use super::fixture::{Daemon, PATIENCE, Place};
use crate::{Listen, Tls, listener::Identity};
use offshoot_api::v1::DaemonMode;
use std::{net::SocketAddr, sync::Arc};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{ClientConfig, RootCertStore, crypto::ring},
};

async fn encrypted(place: &Place, identity: &Identity) -> (Daemon, SocketAddr) {
    let tls = Tls::load(&identity.certificate, &identity.key).unwrap();
    let mut options = place.options(DaemonMode::Explicit);
    options.listen = vec![Listen::encrypted("127.0.0.1:0".parse().unwrap(), tls)];
    let daemon = place.start(options).await;
    let listen = daemon.client.daemon().await.unwrap().record.listen;
    (daemon, listen[0])
}

/// A client that trusts this certificate and no other, and offers one protocol.
async fn connect(address: SocketAddr, identity: &Identity, protocol: &[u8]) -> TlsStream<TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(identity.der.clone()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    let stream = TcpStream::connect(address).await.unwrap();
    TlsConnector::from(Arc::new(config)).connect("localhost".try_into().unwrap(), stream).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_certificate_both_versions_of_http_are_served_encrypted() {
    let (place, identity) = (Place::new(), Identity::new());
    let (daemon, address) = encrypted(&place, &identity).await;

    let mut stream = connect(address, &identity, b"http/1.1").await;
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    let stream = connect(address, &identity, b"h2").await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let io = hyper_util::rt::TokioIo::new(stream);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    let request = hyper::Request::get("https://localhost/v1/vms").body(axum::body::Body::empty()).unwrap();
    let asked = async {
        let status = sender.send_request(request).await.unwrap().status();
        drop(sender);
        status
    };
    let (status, _) = timeout(PATIENCE, futures::future::join(asked, connection)).await.unwrap();
    assert_eq!(status, 401, "encrypted, and nobody all the same");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_speaks_no_tls_is_hung_up_on_and_who_says_nothing_keeps_nobody_waiting() {
    let (place, identity) = (Place::new(), Identity::new());
    let (daemon, address) = encrypted(&place, &identity).await;
    let silent = TcpStream::connect(address).await.unwrap();
    let mut plain = TcpStream::connect(address).await.unwrap();
    plain.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    // An alert, and the end; the bytes it never read may make that end a reset.
    let ended = timeout(PATIENCE, plain.read_to_end(&mut answer)).await.expect("it is hung up");
    drop(ended);
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    drop(connect(address, &identity, b"http/1.1").await);
    drop(silent);
    daemon.stop().await;
}
