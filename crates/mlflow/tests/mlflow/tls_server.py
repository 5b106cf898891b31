"""An HTTPS server with a certificate that nobody has signed, answering as an MLflow with one experiment.

usage: tls_server.py PORT DIRECTORY    (writes own.pem and other.pem into DIRECTORY)
"""

import datetime
import http.server
import pathlib
import ssl
import sys

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

port, directory = int(sys.argv[1]), pathlib.Path(sys.argv[2])


def certify(name):
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (directory / f"{name}.pem").write_bytes(certificate.public_bytes(pem))
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (directory / f"{name}.key").write_bytes(private)


class Experiment(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b'{"experiment": {"experiment_id": "1", "lifecycle_stage": "active"}}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


certify("own")
certify("other")
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(directory / "own.pem", directory / "own.key")
server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Experiment)
server.socket = context.wrap_socket(server.socket, server_side=True)
print("serving", file=sys.stderr, flush=True)
server.serve_forever()
