"""Oracle's own SDK drives the development bucket server and counts where it does not behave like the service.

usage: conformance.py '{"all": URL, "prefix": URL, "read": URL, "unlisted": URL, "write": URL, "object": URL}'

The SDK asks `ENDPOINT/n/NAMESPACE/b/BUCKET/o/NAME`; with `ENDPOINT` ending in `/p/TOKEN` that is a PAR. Its
signature is made with a key that nobody knows, and PARs ignore it. Exit code 0 means no deviation.
"""

import base64
import hashlib
import io
import json
import re
import sys
import tempfile
import warnings

warnings.filterwarnings("ignore")

import oci  # noqa: E402
import requests  # noqa: E402
from cryptography.hazmat.primitives import serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import rsa  # noqa: E402
from oci.object_storage import ObjectStorageClient, UploadManager  # noqa: E402
from oci.object_storage.transfer.internal.download.DownloadConfiguration import DownloadConfiguration  # noqa: E402
from oci.object_storage.transfer.internal.download.DownloadManager import DownloadManager  # noqa: E402

PARS = json.loads(sys.argv[1])
FIELDS = "name,size,etag,md5,timeModified"
DENIED = (404, "BucketNotFound")
OUTSIDE = (401, "NotAuthenticated", "The prefix from the request and the prefix from PAR are not compatible")
GONE = (401, "NotAuthenticated", "PAR does not exist")

deviations = 0


def throwaway_key():
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    ).decode()


CONFIG = {
    "user": "ocid1.user.oc1..nobody",
    "tenancy": "ocid1.tenancy.oc1..nowhere",
    "fingerprint": ":".join(["00"] * 16),
    "region": "eu-frankfurt-1",
    "key_content": throwaway_key(),
}


class Par:
    """The SDK's client behind one PAR, each method with namespace and bucket filled in."""

    def __init__(self, url):
        endpoint, self.namespace, self.bucket = re.match(r"(.*/p/[^/]+)/n/([^/]+)/b/([^/]+)/o/", url).groups()
        self.origin = endpoint.split("/p/")[0]
        self.client = ObjectStorageClient(
            CONFIG, service_endpoint=endpoint, retry_strategy=oci.retry.NoneRetryStrategy()
        )

    def __getattr__(self, method):
        return lambda *names, **options: getattr(self.client, method)(self.namespace, self.bucket, *names, **options)

    def names(self, **options):
        names, start = [], options.pop("start", None)
        while True:
            page = self.list_objects(**({"start": start} if start else {}), **options).data
            names += [entry.name for entry in page.objects]
            start = page.next_start_with
            if not start:
                return names


def check(what, got, expected):
    global deviations
    if got != expected:
        deviations += 1
        print(f"DEVIATION {what}: expected {expected!r}, got {got!r}")


def refusal(what, call, expected):
    """The service refuses `call` with this status, code and (where it is given) message, and names the request."""
    try:
        answer = call()
    except oci.exceptions.ServiceError as error:
        got = (error.status, error.code, error.message)[: len(expected)]
        check(what, got, expected)
        check(f"{what}: a request id", bool(error.request_id), True)
    else:
        check(what, f"{answer.status}, not refused", expected)


def md5_of(content):
    return base64.b64encode(hashlib.md5(content).digest()).decode()


everything = Par(PARS["all"])
under_prefix, reader, unlisted = Par(PARS["prefix"]), Par(PARS["read"]), Par(PARS["unlisted"])
writer, one_object = Par(PARS["write"]), Par(PARS["object"])
NAMES = ["+ & # ? %", "./x", "0123", "a//b", "dir/", "dir/../x", "sub/a", "sub/b c", "sub/deep/ü", "z"]

# Listings
check("all names, in the order of their bytes", everything.names(), sorted(NAMES, key=str.encode))
for limit in range(1, len(NAMES) + 2):
    check(f"the same in pages of {limit}", everything.names(limit=limit), NAMES)
check("a prefix", everything.names(prefix="sub/"), ["sub/a", "sub/b c", "sub/deep/ü"])
check("a prefix in pages", everything.names(prefix="sub/", limit=1), ["sub/a", "sub/b c", "sub/deep/ü"])
check("start is inclusive", everything.names(start="sub/a")[0], "sub/a")
check("start_after is exclusive", everything.names(start_after="sub/a")[0], "sub/b c")
check("end is exclusive", everything.names(end="sub/b c")[-1], "sub/a")
for limit in (1, 2, 1000):
    folders, objects, start = [], [], None
    while True:
        page = everything.list_objects(delimiter="/", limit=limit, **({"start": start} if start else {})).data
        folders += page.prefixes
        objects += [entry.name for entry in page.objects]
        start = page.next_start_with
        if not start:
            break
    check("folders by a delimiter", folders, ["./", "a/", "dir/", "sub/"])
    check("and what is beside them", objects, ["+ & # ? %", "0123", "z"])
check("folders under a prefix", everything.list_objects(prefix="sub/", delimiter="/").data.prefixes, ["sub/deep/"])
bare = everything.list_objects().data.objects[0]
check("names alone unless asked", (bare.size, bare.etag, bare.md5, bare.time_modified), (None,) * 4)
for entry in everything.list_objects(fields=FIELDS).data.objects:
    content = everything.get_object(entry.name).data.content
    head = everything.head_object(entry.name).headers
    check(f"{entry.name}: size", entry.size, len(content))
    check(f"{entry.name}: MD5 in listing and HEAD", (entry.md5, head["content-md5"]), (md5_of(content),) * 2)
    check(f"{entry.name}: ETag in HEAD", head["etag"], entry.etag)
    check(f"{entry.name}: length in HEAD", int(head["content-length"]), len(content))
    check(f"{entry.name}: time", entry.time_modified.tzinfo is not None, True)
for limit in (0, 1001):
    refusal(f"pages of {limit}", lambda: everything.list_objects(limit=limit), (400,))

# Reading
etag = everything.head_object("0123").headers["etag"]
check("ETags are stable", everything.get_object("0123").headers["etag"], etag)
check("ETags look like UUIDs", bool(re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", etag)), True)
for asked, status, content, told in [
    (None, 200, b"0123456789abcdef", None),
    ("bytes=0-0", 206, b"0", "bytes 0-0/16"),
    ("bytes=3-5", 206, b"345", "bytes 3-5/16"),
    ("bytes=10-", 206, b"abcdef", "bytes 10-15/16"),
    ("bytes=-4", 206, b"cdef", "bytes 12-15/16"),
    ("bytes=14-99", 206, b"ef", "bytes 14-15/16"),
]:
    answer = everything.get_object("0123", **({"range": asked} if asked else {}))
    got = (answer.status, answer.data.content, answer.headers.get("content-range"))
    check(f"range {asked}", got, (status, content, told))
refusal("a range behind the end", lambda: everything.get_object("0123", range="bytes=16-"), (416,))
refusal("a range of nothing", lambda: everything.get_object("z", range="bytes=0-0"), (416,))
check("If-Match that holds", everything.get_object("0123", if_match=etag).status, 200)
refusal("If-Match that does not", lambda: everything.get_object("0123", if_match="x"), (412, "IfMatchFailed"))
check("If-None-Match that holds", everything.get_object("0123", if_none_match="x").status, 200)
refusal("If-None-Match that does not", lambda: everything.get_object("0123", if_none_match=etag), (304,))
refusal("a missing object", lambda: everything.get_object("nothing"), (404, "ObjectNotFound"))
refusal("a missing object by HEAD", lambda: everything.head_object("nothing"), (404,))

# Writing
kept = [b"", b"x", bytes(range(256)) * 1024]
for index, content in enumerate(kept):
    answer = everything.put_object(f"put/{index}", content, content_md5=md5_of(content))
    check("PUT tells the ETag", everything.head_object(f"put/{index}").headers["etag"], answer.headers["etag"])
    check("PUT tells the MD5", answer.headers["opc-content-md5"], md5_of(content))
    check("what was PUT is read", everything.get_object(f"put/{index}").data.content, content)
before = everything.head_object("put/1").headers["etag"]
refusal(
    "a body that is not the one announced",
    lambda: everything.put_object("put/1", b"y", content_md5=md5_of(b"z")),
    (400, "UnmatchedContentMD5"),
)
check("a refused body changes nothing", everything.get_object("put/1").data.content, b"x")
everything.put_object("put/1", b"x")
check("each PUT makes a version", everything.head_object("put/1").headers["etag"] != before, True)
refusal(
    "a version that is gone", lambda: everything.put_object("put/1", b"y", if_match=before), (412, "IfMatchFailed")
)
refusal(
    "an object that is there",
    lambda: everything.put_object("put/1", b"y", if_none_match="*"),
    (412, "IfNoneMatchFailed"),
)
check("an object that is not there", everything.put_object("put/new", b"y", if_none_match="*").status, 200)
for name in ["put/ü +&#?%", "put//x", "put/../x", "put/folder/"]:
    everything.put_object(name, name.encode())
    check(f"{name} goes round", everything.get_object(name).data.content.decode(), name)
refusal("a name that is too long", lambda: everything.put_object("n" * 1025, b""), (400, "InvalidObjectName"))

# The SDK's own way of moving files
big = bytes(index * 7 % 251 for index in range(3_000_000))
uploads = UploadManager(everything.client, allow_multipart_uploads=False)
with tempfile.NamedTemporaryFile() as file:
    file.write(big)
    file.flush()
    uploads.upload_file(everything.namespace, everything.bucket, "put/big", file.name)
check("UploadManager", everything.get_object("put/big").data.content == big, True)


def downloaded(name, checked):
    # One thread: with several, and for objects that were uploaded in parts, the SDK can check a CRC32C only, and what a
    # PAR's object has is an MD5.
    settings = DownloadConfiguration(
        part_size_in_bytes=1 << 20, num_download_threads=1, is_enforce_data_integrity_for_download=checked
    )
    stream = io.BytesIO()
    DownloadManager(settings, everything.client).get_object_to_stream(
        everything.namespace, everything.bucket, name, stream
    )
    return stream.getvalue()


check("DownloadManager, in parts and with its checksum", downloaded("put/big", True) == big, True)


# Uploads in parts: the SDK has no method for those of PARs, so its HTTP library asks as the documentation says.
def url(par, name):
    return f"{par.client.base_client.endpoint}/n/{par.namespace}/b/{par.bucket}/o/{name}"


def opened(name):
    answer = requests.put(url(everything, name), headers={"opc-multipart": "true"})
    check("an upload is opened", answer.status_code, 200)
    return everything.origin + answer.json()["accessUri"]


parts = [big[:1_000_000], big[1_000_000:2_500_000], big[2_500_000:]]
upload = opened("put/parts")
check("where its parts go", bool(re.search(r"/p/[^/]+/n/[^/]+/b/[^/]+/u/put/parts/id/[^/]+/$", upload)), True)
for number in (3, 1, 2):
    check(f"part {number}", requests.put(f"{upload}{number}", data=parts[number - 1]).status_code, 200)
refusal("nothing is seen before the commit", lambda: everything.head_object("put/parts"), (404,))
check("the commit", requests.post(upload).status_code, 200)
check("all parts in order", everything.get_object("put/parts").data.content == big, True)
headers = everything.head_object("put/parts").headers
expected = md5_of(b"".join(hashlib.md5(part).digest() for part in parts)) + "-3"
check("the MD5 of MD5s", (headers.get("opc-multipart-md5"), headers.get("content-md5")), (expected, None))
check("DownloadManager takes it", downloaded("put/parts", False) == big, True)
check("a second commit", requests.post(upload).status_code, 404)
upload = opened("put/aborted")
requests.put(f"{upload}1", data=b"x")
check("the abort", requests.delete(upload).status_code, 204)
check("no part after it", requests.put(f"{upload}2", data=b"x").status_code, 404)
refusal("nothing is left of it", lambda: everything.head_object("put/aborted"), (404,))

# What PARs do not allow
refusal("deleting, ever", lambda: everything.delete_object("0123"), DENIED)
check("nothing was deleted", everything.head_object("0123").status, 200)
stranger = Par(PARS["all"].replace("/n/", "x/n/", 1))
refusal("an unknown token", lambda: stranger.get_object("0123"), GONE)
refusal("an unknown token for a listing", stranger.list_objects, GONE)
check("a prefix PAR lists", under_prefix.names(prefix="sub/"), ["sub/a", "sub/b c", "sub/deep/ü"])
check("a prefix PAR lists deeper", under_prefix.names(prefix="sub/deep/"), ["sub/deep/ü"])
check("a prefix PAR reads", under_prefix.get_object("sub/a").data.content, b"a in sub")
refusal("a listing outside its prefix", under_prefix.list_objects, OUTSIDE)
refusal("an object outside its prefix", lambda: under_prefix.get_object("0123"), OUTSIDE)
refusal("a write outside its prefix", lambda: under_prefix.put_object("x", b""), OUTSIDE)
refusal("a listing that was not granted", unlisted.list_objects, DENIED)
check("reading with that PAR", unlisted.get_object("0123").status, 200)
refusal("a write with a PAR that reads", lambda: reader.put_object("0123", b""), DENIED)
check("a write with a PAR that writes", writer.put_object("put/written", b"").status, 200)
refusal("a read with a PAR that writes", lambda: writer.get_object("0123"), DENIED)
check("the object of an object PAR", one_object.get_object("sub/a").data.content, b"a in sub")
refusal("another object than its own", lambda: one_object.get_object("0123"), (401,))
refusal("listing with it", one_object.list_objects, DENIED)

print(f"{deviations} deviations")
sys.exit(1 if deviations else 0)
