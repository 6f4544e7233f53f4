//! Certificates: an authority of one's own, what it signs, what somebody else signed, and when they expire (RFC 5280).
//!
//! PURE given the time; keys and signatures take their randomness from ring, which asks the system. Never: a private key
//! in an error, a certificate that outlives its authority.

use std::net::IpAddr;

use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData as _, SanType, SerialNumber,
};
use x509_parser::asn1_rs::Oid;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate, X509Name};
use zeroize::Zeroizing;

use super::shape::{Made, Public, Random};
use super::{Unsealed, pem};
use crate::name::SecretName;

pub const AUTHORITY_DAYS: u32 = 3650;
pub const CERTIFICATE_DAYS: u32 = 365;
/// How long before its end a certificate is pointed out.
pub const SOON: SignedDuration = SignedDuration::from_hours(24 * 30);
/// Clocks of a fleet differ a little; who is behind must not find a certificate that is not valid yet.
const EARLIER: SignedDuration = SignedDuration::from_hours(1);
/// More than a key and a certificate take.
const VALUE_BYTES: usize = 8 << 10;

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("there is no certificate in it (-----BEGIN CERTIFICATE-----)")]
    NoCertificate,
    #[error("a certificate in it cannot be read")]
    Unreadable,
    #[error("there is no private key in it (-----BEGIN PRIVATE KEY-----)")]
    NoKey,
    #[error(
        "the private key cannot be read: it has to be RSA, P-256, P-384 or ed25519, as PKCS#8 without a passphrase; `openssl pkcs8 -topk8 -nodes -in KEY` writes it so"
    )]
    Key,
    #[error("the private key is not that of the certificate of {subject}")]
    KeyDoesNotFit { subject: String },
    #[error("the certificate of {subject} is not an authority's")]
    NotAnAuthority { subject: String },
    #[error("the name of the authority {subject} has an attribute of a kind that cannot be written into what it signs")]
    Name { subject: String },
    #[error("the certificate of {subject} expired at {at}")]
    Expired { subject: String, at: Timestamp },
    #[error("the certificate of {subject} is valid from {from} only")]
    NotYetValid { subject: String, from: Timestamp },
    #[error("the certificate of {subject} did not sign any of those before it: it is not part of the chain")]
    Chain { subject: String },
    #[error("the certificate cannot be made")]
    Issue(#[source] rcgen::Error),
}

/// Whom a certificate is for.
pub struct Subject {
    /// The fleet.
    pub organization: String,
    /// At most 64 characters. Of a node's certificate the node's name: etcd takes it for the user.
    pub name: String,
    pub names: Vec<String>,
    pub ips: Vec<IpAddr>,
}

/// From when, and for how long.
#[derive(Clone, Copy)]
pub struct Life {
    pub now: Timestamp,
    pub days: u32,
}

impl Life {
    fn end(self) -> Timestamp {
        let days = SignedDuration::from_hours(24 * i64::from(self.days));
        self.now.checked_add(days).unwrap_or(Timestamp::MAX)
    }
}

/// A certificate authority's key, with what it needs to sign.
pub struct Authority {
    key: KeyPair,
    /// Its own certificate (DER).
    certificate: Vec<u8>,
    expires: Timestamp,
    /// What comes with every certificate that it signs: its own certificate and those above, roots left out.
    chain: Vec<String>,
}

/// A new authority, signed by itself: key and certificate in one PEM; the certificate is public.
pub fn authority(subject: &Subject, life: Life, random: Random<'_>) -> Result<Made, TlsError> {
    let key = KeyPair::generate().map_err(TlsError::Issue)?;
    let mut params = params(subject, life, life.end(), random);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key).map_err(TlsError::Issue)?.pem();
    let value = bundle(&Zeroizing::new(key.serialize_pem()), [certificate.as_str()]);
    Ok(Made { value, public: Some(Public { extension: "crt", text: certificate }) })
}

/// A PEM of these blocks, one below the other.
fn bundle<'t>(key: &'t str, certificates: impl IntoIterator<Item = &'t str>) -> Zeroizing<Vec<u8>> {
    // Reserved at once: a vector that grows leaves copies behind.
    let mut value = Zeroizing::new(Vec::with_capacity(key.len() + VALUE_BYTES));
    for block in std::iter::once(key).chain(certificates) {
        value.extend(block.trim_end().bytes().chain(*b"\n"));
    }
    value
}

impl Authority {
    /// From its secret: the key, its certificate, and those above it.
    pub fn open(bundle: &[u8]) -> Result<Self, TlsError> {
        let key = read_key(bundle)?;
        let texts: Vec<&str> = pem::certificates(text(bundle)).collect();
        let ders = texts.iter().map(|text| der(text)).collect::<Result<Vec<_>, _>>()?;
        let parsed = ders.iter().map(|der| parse(der)).collect::<Result<Vec<_>, _>>()?;
        let own = parsed.first().ok_or(TlsError::NoCertificate)?;
        if !fits(&key, own) {
            return Err(TlsError::KeyDoesNotFit { subject: subject_of(own) });
        }
        if !own.is_ca() {
            return Err(TlsError::NotAnAuthority { subject: subject_of(own) });
        }
        if !can_be_written(own.subject()) {
            return Err(TlsError::Name { subject: subject_of(own) });
        }
        let below_root = texts.iter().zip(&parsed).filter(|(_, certificate)| !is_root(certificate));
        let chain = below_root.map(|(text, _)| (*text).to_owned()).collect();
        Ok(Self { expires: expires(own), certificate: ders[0].clone(), key, chain })
    }

    /// Private key, certificate and chain, for a server that is also a client.
    pub fn issue(&self, subject: &Subject, life: Life, random: Random<'_>) -> Result<Made, TlsError> {
        let end = life.end().min(self.expires);
        if end <= life.now {
            let subject = subject_of(&parse(&self.certificate)?);
            return Err(TlsError::Expired { subject, at: self.expires });
        }
        let key = KeyPair::generate().map_err(TlsError::Issue)?;
        let mut params = params(subject, life, end, random);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.subject_alt_names = alternatives(&subject.names, &subject.ips)?;
        let issuer =
            Issuer::from_ca_cert_der(&self.certificate.as_slice().into(), &self.key).map_err(TlsError::Issue)?;
        let certificate = params.signed_by(&key, &issuer).map_err(TlsError::Issue)?;
        let own = certificate.pem();
        let chain = std::iter::once(own.as_str()).chain(self.chain.iter().map(String::as_str));
        Ok(Made { value: bundle(&Zeroizing::new(key.serialize_pem()), chain), public: None })
    }
}

/// What is signed carries the authority's name. X.660 has no roots but 0, 1 and 2, and 40 arcs below the first two; the
/// reader lets others pass (also 2.40 and above, which it takes for 3), and the writer panics at them.
fn can_be_written(name: &X509Name<'_>) -> bool {
    let written = |kind: &Oid<'_>| {
        let first: Option<Vec<u64>> = kind.iter().map(|arcs| arcs.take(2).collect());
        matches!(first.as_deref(), Some([0 | 1, ..=39] | [2, ..=39]))
    };
    name.iter_attributes().all(|attribute| written(attribute.attr_type()))
}

fn alternatives(names: &[String], ips: &[IpAddr]) -> Result<Vec<SanType>, TlsError> {
    let names = names.iter().map(|name| Ok(SanType::DnsName(name.as_str().try_into().map_err(TlsError::Issue)?)));
    names.chain(ips.iter().map(|ip| Ok(SanType::IpAddress(*ip)))).collect()
}

fn params(subject: &Subject, life: Life, end: Timestamp, random: Random<'_>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, subject.organization.as_str());
    params.distinguished_name.push(DnType::CommonName, subject.name.as_str());
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let date = |at: Timestamp| epoch + std::time::Duration::from_secs(at.as_second().max(0).unsigned_abs());
    params.not_before = date(life.now - EARLIER);
    params.not_after = date(end);
    let mut serial = [0; 16];
    random(&mut serial);
    // Positive, and not zero.
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params
}

/// A certificate that somebody else made, found to be whole.
pub struct Given {
    /// Key, certificate and chain in one PEM; of an authority the certificates are public.
    pub made: Made,
    pub names: Vec<String>,
    pub ips: Vec<IpAddr>,
    pub kind: GivenKind,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GivenKind {
    Authority,
    Certificate,
}

/// `certificate` may have its chain below it; `chain` may come in any order.
///
/// # Errors
/// The key is another certificate's, a date has passed, or a certificate belongs to no chain.
pub fn given(certificate: &[u8], key: &[u8], chain: &[u8], now: Timestamp) -> Result<Given, TlsError> {
    let pair = read_key(key)?;
    let mut texts: Vec<&str> = pem::certificates(text(certificate)).collect();
    if texts.is_empty() {
        return Err(TlsError::NoCertificate);
    }
    for more in pem::certificates(text(chain)) {
        if !texts.contains(&more) {
            texts.push(more);
        }
    }
    let ders = texts.iter().map(|text| der(text)).collect::<Result<Vec<_>, _>>()?;
    let parsed = ders.iter().map(|der| parse(der)).collect::<Result<Vec<_>, _>>()?;
    let own = &parsed[0];
    if !fits(&pair, own) {
        return Err(TlsError::KeyDoesNotFit { subject: subject_of(own) });
    }
    for one in &parsed {
        let (from, until) = (time(one.validity().not_before), expires(one));
        if until <= now {
            return Err(TlsError::Expired { subject: subject_of(one), at: until });
        }
        if from > now {
            return Err(TlsError::NotYetValid { subject: subject_of(one), from });
        }
    }
    let mut order = vec![0];
    while let Some(next) = (0..parsed.len())
        .find(|n| !order.contains(n) && order.last().is_some_and(|last| signed(&parsed[*n], &parsed[*last])))
    {
        order.push(next);
    }
    if let Some(stray) = (0..parsed.len()).find(|n| !order.contains(n)) {
        return Err(TlsError::Chain { subject: subject_of(&parsed[stray]) });
    }
    let chained = order.iter().map(|n| texts[*n]);
    let value = bundle(pem::private_key(text(key)).ok_or(TlsError::NoKey)?, chained.clone());
    let (names, ips) = names(own);
    let kind = if own.is_ca() { GivenKind::Authority } else { GivenKind::Certificate };
    let public =
        own.is_ca().then(|| Public { extension: "crt", text: chained.map(|one| format!("{one}\n")).collect() });
    Ok(Given { made: Made { value, public }, names, ips, kind })
}

/// A request for another certificate of the same key, for the same subject and names (RFC 2986), as PEM. `bundle`: the
/// secret's value.
pub fn request(bundle: &[u8]) -> Result<String, TlsError> {
    let key = read_key(bundle)?;
    let der = der(pem::certificates(text(bundle)).next().ok_or(TlsError::NoCertificate)?)?;
    let own = parse(&der)?;
    if !fits(&key, &own) {
        return Err(TlsError::KeyDoesNotFit { subject: subject_of(&own) });
    }
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    for (kind, mut values) in [
        (DnType::OrganizationName, own.subject().iter_organization().collect::<Vec<_>>()),
        (DnType::CommonName, own.subject().iter_common_name().collect()),
    ] {
        if let Some(value) = values.pop().and_then(|value| value.as_str().ok()) {
            params.distinguished_name.push(kind, value);
        }
    }
    let (names, ips) = names(&own);
    params.subject_alt_names = alternatives(&names, &ips)?;
    params.serialize_request(&key).and_then(|request| request.pem()).map_err(TlsError::Issue)
}

/// Certificates that a new one of the same authority stands beside until they expire: who has not the new one yet is still
/// believed. `former`: what was public before.
pub fn beside(new: &str, former: &[u8], now: Timestamp) -> String {
    let mut out = format!("{}\n", new.trim_end());
    for old in pem::certificates(text(former)).filter(|old| !new.contains(old)) {
        if expiry(old.as_bytes()).is_some_and(|at| at > now) {
            out.push_str(&format!("{old}\n"));
        }
    }
    out
}

/// The secrets whose certificates expire soon or have expired, the first ones first.
pub fn ending(unsealed: &Unsealed, now: Timestamp) -> Vec<(SecretName, Timestamp)> {
    let until = now.checked_add(SOON).unwrap_or(Timestamp::MAX);
    let expiries = unsealed.opened().filter_map(|(name, secret)| Some((name.clone(), expiry(secret.expose())?)));
    let mut ending: Vec<(SecretName, Timestamp)> = expiries.filter(|(_, at)| *at < until).collect();
    ending.sort_by_key(|(_, at)| *at);
    ending
}

/// `in 12 days`, `today`, `3 days ago`.
pub fn from_now(at: Timestamp, now: Timestamp) -> String {
    match at.duration_since(now).as_hours() / 24 {
        0 => "today".to_owned(),
        1 => "tomorrow".to_owned(),
        -1 => "yesterday".to_owned(),
        days if days < 0 => format!("{} days ago", -days),
        days => format!("in {days} days"),
    }
}

/// The CN of the first certificate of a PEM text: who it is to a server that asks for one. `None`: as below.
pub fn common_name(pem: &[u8]) -> Option<String> {
    let der = der(pem::certificates(text(pem)).next()?).ok()?;
    let certificate = parse(&der).ok()?;
    let name = certificate.subject().iter_common_name().next()?.as_str().ok()?;
    Some(name.to_owned())
}

/// When the first certificate of a PEM text expires. `None`: there is none, or none that can be read.
pub fn expiry(pem: &[u8]) -> Option<Timestamp> {
    let ders = pem::certificates(text(pem)).filter_map(|text| der(text).ok());
    ders.filter_map(|der| parse(&der).ok().map(|certificate| expires(&certificate))).min()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

fn read_key(bytes: &[u8]) -> Result<KeyPair, TlsError> {
    let block = pem::private_key(text(bytes)).ok_or(TlsError::NoKey)?;
    KeyPair::from_pem(block).map_err(|_| TlsError::Key)
}

fn der(block: &str) -> Result<Vec<u8>, TlsError> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(block.as_bytes()).map_err(|_| TlsError::Unreadable)?;
    Ok(pem.contents)
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, TlsError> {
    X509Certificate::from_der(der).map(|(_, certificate)| certificate).map_err(|_| TlsError::Unreadable)
}

fn fits(key: &KeyPair, certificate: &X509Certificate<'_>) -> bool {
    key.subject_public_key_info() == certificate.public_key().raw
}

/// Whether `above` signed `below`, and is another certificate.
fn signed(above: &X509Certificate<'_>, below: &X509Certificate<'_>) -> bool {
    above.as_raw() != below.as_raw()
        && above.subject().as_raw() == below.issuer().as_raw()
        && below.verify_signature(Some(above.public_key())).is_ok()
}

fn is_root(certificate: &X509Certificate<'_>) -> bool {
    certificate.subject().as_raw() == certificate.issuer().as_raw()
}

fn subject_of(certificate: &X509Certificate<'_>) -> String {
    certificate.subject().to_string()
}

fn expires(certificate: &X509Certificate<'_>) -> Timestamp {
    time(certificate.validity().not_after)
}

fn time(at: x509_parser::time::ASN1Time) -> Timestamp {
    Timestamp::from_second(at.timestamp()).unwrap_or(Timestamp::MAX)
}

fn names(certificate: &X509Certificate<'_>) -> (Vec<String>, Vec<IpAddr>) {
    let (mut names, mut ips) = (Vec::new(), Vec::new());
    let alternatives = certificate.subject_alternative_name().ok().flatten();
    for name in alternatives.iter().flat_map(|names| &names.value.general_names) {
        match name {
            GeneralName::DNSName(name) => names.push((*name).to_owned()),
            GeneralName::IPAddress(bytes) => {
                let four = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
                let six = || <[u8; 16]>::try_from(*bytes).map(IpAddr::from);
                ips.extend(four.or_else(|_| six()));
            }
            _ => {}
        }
    }
    (names, ips)
}
