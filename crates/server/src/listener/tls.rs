//! TLS before HTTP: a certificate and its key from files, as `certbot` and others write them.

use offshoot_types::{ErrorCode, Failure};
use std::{error::Error, fmt, io, path::Path, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig, SupportedProtocolVersion,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
        version::{TLS12, TLS13},
    },
    server::TlsStream,
};

const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
/// What is spoken within, the best first (RFC 7301).
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];
/// How long a caller may take to agree on keys.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Who we are to callers, and how what they say is kept secret. Cheap to clone.
#[derive(Clone)]
pub struct Tls(TlsAcceptor);

impl Tls {
    /// Reads a chain of certificates, our own first, and its private key, both PEM. They are read once: a renewed
    /// certificate is shown to callers by the next daemon.
    pub fn load(certificates: &Path, key: &Path) -> Result<Self, Failure> {
        let chain = CertificateDer::pem_file_iter(certificates)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| unusable("the certificates", certificates, &error))?;
        if chain.is_empty() {
            return Err(Failure::new(
                ErrorCode::InvalidArgument,
                format!("there is no certificate in {}", certificates.display()),
            )
            .hint("name the file with the full chain in PEM, such as `fullchain.pem`"));
        }
        let private =
            PrivateKeyDer::from_pem_file(key).map_err(|error| unusable("the private key", key, &error))?;
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&VERSIONS)
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, private));
        // Among others: the key is not that of the certificate.
        let mut config = config.map_err(|error| unusable("the certificates", certificates, &error))?;
        config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).into();
        Ok(Self(TlsAcceptor::from(Arc::new(config))))
    }

    pub(super) async fn accept<S>(self, stream: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        timeout(HANDSHAKE, self.0.accept(stream)).await?
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

fn unusable(what: &str, file: &Path, error: &(dyn Error + 'static)) -> Failure {
    Failure::new(ErrorCode::InvalidArgument, format!("cannot use {what} in {}", file.display()))
        .caused_by(error)
        .hint("both files are PEM, and the key is that of the first certificate")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::{fs, path::PathBuf};
    use tempfile::TempDir;

    /// A certificate for `localhost` that signs itself, and its key.
    pub struct Identity {
        _dir: TempDir,
        pub certificate: PathBuf,
        pub key: PathBuf,
        pub der: CertificateDer<'static>,
    }

    impl Identity {
        pub fn new() -> Self {
            let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
            let dir = tempfile::tempdir().unwrap();
            let (certificate, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
            fs::write(&certificate, made.cert.pem()).unwrap();
            fs::write(&key, made.signing_key.serialize_pem()).unwrap();
            Self { _dir: dir, certificate, key, der: made.cert.der().clone() }
        }
    }

    #[test]
    fn what_is_no_pair_of_certificate_and_key_is_refused_by_file() {
        let (one, other) = (Identity::new(), Identity::new());
        Tls::load(&one.certificate, &one.key).unwrap();
        let missing = one.certificate.with_file_name("none.pem");
        for (certificate, key, named) in [
            (&missing, &one.key, &missing),
            (&one.certificate, &missing, &missing),
            (&one.key, &one.key, &one.key),
            (&one.certificate, &one.certificate, &one.certificate),
            (&one.certificate, &other.key, &one.certificate),
        ] {
            let refused = Tls::load(certificate, key).unwrap_err();
            assert_eq!(refused.code, ErrorCode::InvalidArgument);
            assert!(refused.message.contains(&named.display().to_string()), "{refused:?}");
            assert!(refused.hint.is_some());
        }
    }
}
