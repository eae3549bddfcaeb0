//! The TLS side of a listener: certificates, read at the start and again on SIGHUP.
//!
//! Connections keep what they were made with. A reload that finds anything wrong changes nothing and says so in one
//! line: a broker that has been up for months must not lose its listener to a typing error.

mod peer;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, ServerConfig, ServerConnection, SupportedProtocolVersion};

use crate::config::access::{TlsConfig, TlsVersionArg, VerifyArg};
use crate::disk::small_file;
use crate::session::External;
use crate::sync::{read, write};

/// Why certificates cannot be used; one line for the operator.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A file is not what it should be.
    #[error("{} holds no usable {wanted}: {error}", path.display())]
    Useless {
        /// Which.
        path: PathBuf,
        /// What it should hold.
        wanted: &'static str,
        /// What is wrong.
        error: String,
    },
}

/// See the module.
pub(super) struct Tls {
    settings: TlsConfig,
    /// What new connections are made with.
    current: RwLock<Arc<ServerConfig>>,
}

impl Tls {
    /// Reads the files.
    pub(super) fn new(settings: TlsConfig) -> Result<Self, TlsError> {
        let current = RwLock::new(load(&settings)?);
        Ok(Self { settings, current })
    }

    pub(super) fn settings(&self) -> &TlsConfig {
        &self.settings
    }

    /// The server's side of a new connection.
    pub(super) fn accept(&self) -> Result<ServerConnection, rustls::Error> {
        ServerConnection::new(Arc::clone(&read(&self.current)))
    }

    /// Who the client is, by the certificate it has shown.
    pub(super) fn owner_of(&self, certificate: Option<&CertificateDer<'_>>) -> External {
        let name = certificate.and_then(|it| peer::login_name(it, self.settings.login_from));
        name.map_or(External::Nobody, External::User)
    }

    /// Reads the files again: for new connections, and only when all is well. Waits for the disk.
    pub(super) fn reload(&self) {
        match load(&self.settings) {
            Ok(config) => {
                *write(&self.current) = config;
                tracing::info!(cert = %self.settings.cert.display(), "TLS certificates read again");
            }
            Err(error) => {
                tracing::error!(%error, "TLS certificates not read again; the old ones stay")
            }
        }
    }
}

fn load(settings: &TlsConfig) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let chain = certificates(&settings.cert)?;
    let key_pem = read_file(&settings.key)?;
    let key = PrivateKeyDer::from_pem_slice(&key_pem)
        .map_err(|error| useless(&settings.key, "key", &describe(&error)))?;
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions(settings.min_version))
        .map_err(|error| useless(&settings.cert, "certificate", &error))?;
    let builder = match &settings.ca {
        Some(ca) if settings.verify != VerifyArg::None => {
            builder.with_client_cert_verifier(verifier(ca, settings.verify, provider)?)
        }
        _ => builder.with_no_client_auth(),
    };
    let config = builder
        .with_single_cert(chain, key)
        .map_err(|error| useless(&settings.cert, "certificate for the key", &error))?;
    Ok(Arc::new(config))
}

fn versions(min: TlsVersionArg) -> &'static [&'static SupportedProtocolVersion] {
    static SINCE_1_2: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
    match min {
        TlsVersionArg::V1_2 => &SINCE_1_2,
        TlsVersionArg::V1_3 => &SINCE_1_2[..1],
    }
}

fn verifier(
    ca: &Path,
    verify: VerifyArg,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, TlsError> {
    let wanted = "certificate authority";
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca)? {
        roots
            .add(certificate)
            .map_err(|error| useless(ca, wanted, &error))?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let builder = match verify {
        VerifyArg::Require => builder,
        VerifyArg::Optional | VerifyArg::None => builder.allow_unauthenticated(),
    };
    builder.build().map_err(|error| useless(ca, wanted, &error))
}

/// All certificates of a file; at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read_file(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let found = found.map_err(|error| useless(path, "certificate", &describe(&error)))?;
    if found.is_empty() {
        return Err(useless(path, "certificate", &"there is none in PEM form"));
    }
    Ok(found)
}

fn read_file(path: &Path) -> Result<Vec<u8>, TlsError> {
    small_file::read(path).map_err(|error| TlsError::Unreadable {
        path: path.to_owned(),
        error,
    })
}

/// The library's errors quote bytes of the file; keys must not end in a log.
fn describe(error: &pem::Error) -> &'static str {
    match error {
        pem::Error::NoItemsFound => "there is none in PEM form",
        _ => "it is not well-formed PEM",
    }
}

fn useless(path: &Path, wanted: &'static str, error: &dyn std::fmt::Display) -> TlsError {
    TlsError::Useless {
        path: path.to_owned(),
        wanted,
        error: error.to_string(),
    }
}
