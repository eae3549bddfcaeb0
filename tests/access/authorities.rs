//! Certificates made for a test: authorities, what they sign, and clients that trust them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion};

use super::support::{Builder, TestBroker, free_port};

/// How often a port that somebody else was quicker to take is replaced by another.
const PORT_ATTEMPTS_MAX: usize = 5;

/// Somebody who signs certificates.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate with its key, PEM.
pub(crate) struct Identity {
    pub(crate) cert: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("signed"))
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// A server on this machine.
    pub(crate) fn server(&self, name: &str) -> Identity {
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let params = CertificateParams::new(names).expect("names");
        self.sign(params, name, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// A client of that common name.
    pub(crate) fn client(&self, name: &str) -> Identity {
        let params = CertificateParams::default();
        self.sign(params, name, ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn sign(
        &self,
        mut params: CertificateParams,
        name: &str,
        usage: ExtendedKeyUsagePurpose,
    ) -> Identity {
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().expect("a key");
        let cert = params.signed_by(&key, &self.0).expect("signed");
        Identity {
            cert: cert.pem(),
            key: key.serialize_pem(),
        }
    }
}

/// A directory with `server.pem`, `server.key` and `ca.pem`.
pub(crate) struct Files(tempfile::TempDir);

impl Files {
    pub(crate) fn new(server: &Identity, clients: &Authority) -> Self {
        let files = Self(tempfile::tempdir().expect("a directory"));
        files.write("ca.pem", &clients.pem());
        files.put(server);
        files
    }

    /// Replaces the server's certificate and key.
    pub(crate) fn put(&self, server: &Identity) {
        self.write("server.pem", &server.cert);
        self.write("server.key", &server.key);
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).expect("written");
        path
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Starts a broker with these files and flags; on a TLS port that nobody else was quicker to take.
    #[track_caller]
    pub(crate) fn start(&self, flags: &[&str]) -> (TestBroker, u16) {
        for _ in 0..PORT_ATTEMPTS_MAX {
            let port = free_port();
            let of_files = self.flags(port);
            let of_test = flags.iter().map(|flag| (*flag).to_owned());
            let flags = of_files.into_iter().chain(of_test);
            match flags.fold(TestBroker::builder(), Builder::arg).try_start() {
                Ok(broker) => return (broker, port),
                Err(complaint) if complaint.contains("in use") => {}
                Err(complaint) => panic!("the broker did not start: {complaint}"),
            }
        }
        panic!("no free port in {PORT_ATTEMPTS_MAX} attempts");
    }

    /// The flags that name the files.
    pub(crate) fn flags(&self, port: u16) -> Vec<String> {
        let text = |path: &Path| path.to_str().expect("text").to_owned();
        [
            ("--tls-port", port.to_string()),
            ("--tls-cert", text(&self.path("server.pem"))),
            ("--tls-key", text(&self.path("server.key"))),
            ("--tls-ca", text(&self.path("ca.pem"))),
        ]
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect()
    }
}

/// A client that trusts `servers`, shows `identity`, and speaks `versions`.
pub(crate) fn client_of(
    servers: &Authority,
    identity: Option<&Identity>,
    versions: &[&'static SupportedProtocolVersion],
) -> ClientConnection {
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(servers.pem().as_bytes()).expect("PEM");
    roots.add(root).expect("a root");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .expect("versions")
        .with_root_certificates(roots);
    let config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let chain = CertificateDer::pem_slice_iter(identity.cert.as_bytes());
            let chain = chain.map(|cert| cert.expect("PEM")).collect();
            let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).expect("PEM");
            builder.with_client_auth_cert(chain, key).expect("a pair")
        }
    };
    let name = ServerName::try_from("localhost").expect("a name");
    ClientConnection::new(Arc::new(config), name).expect("a client")
}
