//! Who the owner of a client certificate is: the user's name for `EXTERNAL`.
//!
//! Called with certificates that were found valid only. A certificate that does not say one name clearly says none: two
//! common names, or one that is no text, let nobody in.

use rustls::pki_types::CertificateDer;
use x509_cert::Certificate;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::der::{Decode, Encode};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::{DirectoryString, GeneralName};

use crate::config::access::LoginFromArg;

/// `commonName`, X.520.
const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");

/// The user's name in a certificate.
pub(in crate::server) fn login_name(
    certificate: &CertificateDer<'_>,
    from: LoginFromArg,
) -> Option<String> {
    let certificate = Certificate::from_der(certificate).ok()?;
    let name = match from {
        LoginFromArg::Cn => common_name(&certificate),
        LoginFromArg::Dn => Some(certificate.tbs_certificate.subject.to_string()),
        LoginFromArg::SanDns => alternative_name(&certificate, |name| match name {
            GeneralName::DnsName(name) => Some(name.to_string()),
            _ => None,
        }),
        LoginFromArg::SanEmail => alternative_name(&certificate, |name| match name {
            GeneralName::Rfc822Name(name) => Some(name.to_string()),
            _ => None,
        }),
    };
    name.filter(|name| !name.is_empty())
}

fn common_name(certificate: &Certificate) -> Option<String> {
    let subject = &certificate.tbs_certificate.subject;
    let attributes = subject.0.iter().flat_map(|names| names.0.iter());
    let mut names = attributes.filter(|attribute| attribute.oid == COMMON_NAME);
    let name = names.next()?;
    if names.next().is_some() {
        return None;
    }
    let value = name.value.to_der().ok()?;
    Some(match DirectoryString::from_der(&value).ok()? {
        DirectoryString::PrintableString(text) => text.to_string(),
        DirectoryString::Utf8String(text) => text,
        DirectoryString::TeletexString(_) => return None,
    })
}

fn alternative_name(
    certificate: &Certificate,
    wanted: impl Fn(&GeneralName) -> Option<String>,
) -> Option<String> {
    let (_, names) = certificate.tbs_certificate.get::<SubjectAltName>().ok()??;
    names.0.iter().find_map(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, DnValue, KeyPair, SanType};

    fn certificate(prepare: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        prepare(&mut params);
        let key = KeyPair::generate().expect("a key");
        params.self_signed(&key).expect("signed").der().clone()
    }

    #[track_caller]
    fn check(certificate: &CertificateDer<'_>, from: LoginFromArg, expected: Option<&str>) {
        assert_eq!(
            login_name(certificate, from).as_deref(),
            expected,
            "{from:?}"
        );
    }

    #[test]
    fn the_name_is_where_the_flag_says() {
        let full = certificate(|params| {
            let name = &mut params.distinguished_name;
            name.push(DnType::OrganizationName, "Works");
            name.push(DnType::CommonName, "alice");
            let dns = "alice.example".try_into().expect("a name");
            let mail = "alice@example.com".try_into().expect("an address");
            params.subject_alt_names = vec![SanType::DnsName(dns), SanType::Rfc822Name(mail)];
        });
        check(&full, LoginFromArg::Cn, Some("alice"));
        check(&full, LoginFromArg::Dn, Some("CN=alice,O=Works"));
        check(&full, LoginFromArg::SanDns, Some("alice.example"));
        check(&full, LoginFromArg::SanEmail, Some("alice@example.com"));
    }

    #[test]
    fn an_unclear_name_is_none() {
        let bare = certificate(|_| {});
        for from in [
            LoginFromArg::Cn,
            LoginFromArg::Dn,
            LoginFromArg::SanDns,
            LoginFromArg::SanEmail,
        ] {
            check(&bare, from, None);
        }
        let empty = certificate(|params| {
            params
                .distinguished_name
                .push(DnType::CommonName, DnValue::Utf8String(String::new()));
        });
        check(&empty, LoginFromArg::Cn, None);
        check(&CertificateDer::from(vec![1, 2, 3]), LoginFromArg::Cn, None);
    }
}
