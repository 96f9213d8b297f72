//! Why a TLS handshake failed, in words that say what to do.

use std::io;
use std::net::SocketAddr;

use rustls::{AlertDescription, CertificateError};
use tlog_proto::FrameError;

use crate::seldom::{Seldom, warn_seldom};

/// Why a TLS handshake failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsFault {
    #[error("the client does not take this server's certificate: {} (alert {alert:?})", distrust(.alert))]
    ClientDistrustsUs { alert: AlertDescription },
    #[error(
        "the client shows no certificate, and one of the client CA is needed; give it a certificate and its key"
    )]
    NoClientCertificate,
    #[error(
        "the client's certificate is not within its time: {0}; renew it, and look at the clocks of both machines"
    )]
    ClientCertificateExpired(CertificateError),
    #[error(
        "the client's certificate is for something else: {0}; its extendedKeyUsage must have clientAuth, or be left out"
    )]
    ClientCertificatePurpose(CertificateError),
    #[error(
        "the client's certificate comes from none of the authorities in the client CA: {0}; give the client one that does, or add \
         its authority to the client CA and reload"
    )]
    ClientCertificateUntrusted(CertificateError),
    #[error(
        "what the client sends is not TLS; tell it to use TLS, with the authority that this server's certificate comes from"
    )]
    NotTls,
    #[error(
        "the client closed the connection in the middle of the handshake; some do so where they do not trust the server's \
         certificate, and the client's log says why"
    )]
    Closed,
    #[error("the connection broke in the middle of the handshake: {0}")]
    Broken(io::Error),
    #[error(
        "the handshake was not done in time; the client stopped in the middle of it, or the network is too slow"
    )]
    Timeout,
    #[error("{0}; the client must speak TLS 1.2 or 1.3")]
    Incompatible(rustls::Error),
    #[error("{0}")]
    Other(rustls::Error),
}

impl TlsFault {
    /// What an error of a handshake means.
    pub(crate) fn of(error: io::Error) -> Self {
        match rustls_error(&error) {
            Some(error) => Self::of_rustls(error.clone()),
            None if is_end_of_stream(&error) => Self::Closed,
            None => Self::Broken(error),
        }
    }

    /// What an error means that came once the handshake was over on this side. A client of TLS 1.3 may refuse a certificate when
    /// the server has nothing more to wait for. None where the error is not of TLS.
    pub(crate) fn late(error: &io::Error) -> Option<Self> {
        rustls_error(error).map(|error| Self::of_rustls(error.clone()))
    }

    fn of_rustls(error: rustls::Error) -> Self {
        use AlertDescription as Alert;
        use CertificateError as Bad;
        match error {
            rustls::Error::AlertReceived(
                alert @ (Alert::UnknownCA
                | Alert::BadCertificate
                | Alert::CertificateExpired
                | Alert::CertificateRevoked
                | Alert::CertificateUnknown
                | Alert::UnsupportedCertificate
                | Alert::AccessDenied
                | Alert::DecryptError),
            ) => Self::ClientDistrustsUs { alert },
            rustls::Error::NoCertificatesPresented => Self::NoClientCertificate,
            rustls::Error::InvalidCertificate(error) => match error {
                Bad::Expired
                | Bad::ExpiredContext { .. }
                | Bad::NotValidYet
                | Bad::NotValidYetContext { .. } => Self::ClientCertificateExpired(error),
                Bad::InvalidPurpose | Bad::InvalidPurposeContext { .. } => {
                    Self::ClientCertificatePurpose(error)
                }
                error => Self::ClientCertificateUntrusted(error),
            },
            error @ rustls::Error::PeerIncompatible(_) => Self::Incompatible(error),
            error => Self::Other(error),
        }
    }

    /// A short name, for counters.
    fn reason(&self) -> &'static str {
        match self {
            Self::ClientDistrustsUs { .. } => "client_distrusts_us",
            Self::NoClientCertificate => "no_client_certificate",
            Self::ClientCertificateExpired(_) => "client_certificate_expired",
            Self::ClientCertificatePurpose(_) | Self::ClientCertificateUntrusted(_) => {
                "client_certificate_untrusted"
            }
            Self::NotTls => "not_tls",
            Self::Closed | Self::Broken(_) => "closed",
            Self::Timeout => "timeout",
            Self::Incompatible(_) | Self::Other(_) => "other",
        }
    }

    /// Counts and logs it.
    pub(crate) fn report(&self, peer: SocketAddr, seldom: &Seldom) {
        let reason = self.reason();
        metrics::counter!("tlog_server_tls_handshakes_failed_total", "reason" => reason).increment(1);
        warn_seldom!(seldom, reason, %peer, reason, cause = %self, "TLS handshake failed");
    }
}

/// Whether the other end closed, in whatever way. A client that is killed does not say so in TLS first; that every block is
/// acknowledged tells both sides what arrived, so nothing hangs on it.
pub(crate) fn is_end_of_stream(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::UnexpectedEof
}

/// Whether a handshake that cannot be read is the first message of TLS: the length that it begins with is none that a handshake
/// can have, and is refused.
pub(crate) fn is_tls_at_plain_server(error: &FrameError) -> bool {
    // Four bytes, the lowest first, are one less than the number of segments. TLS begins with 22, 3.
    matches!(error, FrameError::TooManySegments { segments, .. } if segments.wrapping_sub(1) & 0xffff == 0x0316)
}

fn rustls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

fn distrust(alert: &AlertDescription) -> &'static str {
    match *alert {
        AlertDescription::UnknownCA => {
            "it comes from none of the authorities that the client trusts; give the client the certificate of the authority that \
             issued it"
        }
        AlertDescription::CertificateExpired => {
            "it has expired, or is not valid yet by the client's clock; renew it and reload, and look at the clocks of both machines"
        }
        AlertDescription::BadCertificate => {
            "mostly because it has not the name that the client connects to; its subjectAltName must have that name, or tell the \
             client which name to expect"
        }
        AlertDescription::DecryptError => {
            "it is signed by another authority than the one of the same name that the client trusts; give the client the \
             certificate of the right one"
        }
        AlertDescription::UnsupportedCertificate => {
            "it is for something else; its extendedKeyUsage must have serverAuth, or be left out"
        }
        AlertDescription::CertificateRevoked => "it is revoked; renew it and reload",
        _ => "the client does not say more; its log may",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_fail_has_a_name_and_says_what_to_do() {
        let check = |error: rustls::Error, reason: &str, says: &str| {
            let fault = TlsFault::of(io::Error::new(io::ErrorKind::InvalidData, error.clone()));
            let late = TlsFault::late(&io::Error::new(io::ErrorKind::InvalidData, error)).unwrap();
            assert_eq!((fault.reason(), late.reason()), (reason, reason));
            assert!(fault.to_string().contains(says) && late.to_string().contains(says), "{fault}");
        };
        let alert = rustls::Error::AlertReceived;
        check(alert(AlertDescription::UnknownCA), "client_distrusts_us", "(alert UnknownCA)");
        check(alert(AlertDescription::BadCertificate), "client_distrusts_us", "subjectAltName");
        check(alert(AlertDescription::CertificateExpired), "client_distrusts_us", "renew it and reload");
        check(alert(AlertDescription::CertificateUnknown), "client_distrusts_us", "does not say more");
        check(alert(AlertDescription::HandshakeFailure), "other", "HandshakeFailure");
        check(rustls::Error::NoCertificatesPresented, "no_client_certificate", "give it a certificate");
        let bad = rustls::Error::InvalidCertificate;
        check(bad(CertificateError::UnknownIssuer), "client_certificate_untrusted", "add its authority");
        check(bad(CertificateError::BadSignature), "client_certificate_untrusted", "add its authority");
        check(bad(CertificateError::InvalidPurpose), "client_certificate_untrusted", "clientAuth");
        check(bad(CertificateError::Expired), "client_certificate_expired", "renew it");
        check(bad(CertificateError::NotValidYet), "client_certificate_expired", "clocks");
        check(rustls::Error::DecryptError, "other", "decrypt");
        let old = rustls::PeerIncompatible::Tls12NotOfferedOrEnabled;
        check(rustls::Error::PeerIncompatible(old), "other", "must speak TLS 1.2 or 1.3");
    }

    #[test]
    fn an_end_and_a_broken_connection_are_not_of_tls() {
        let closed = || io::Error::from(io::ErrorKind::UnexpectedEof);
        let broken = || io::Error::from(io::ErrorKind::ConnectionReset);
        assert_eq!((TlsFault::of(closed()).reason(), TlsFault::of(broken()).reason()), ("closed", "closed"));
        assert!(TlsFault::late(&closed()).is_none() && TlsFault::late(&broken()).is_none());
        assert!(is_end_of_stream(&closed()) && !is_end_of_stream(&broken()));
    }
}
