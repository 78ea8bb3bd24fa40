"""Rows of the tamper matrix: the evidence of processors that encrypt their memory.

Each row: what is changed; the recipe; which clause refuses it, and with what words; which others have to refuse it too,
where some have to.
"""

from bundles import NOW
from changes import CLOCK, ON_SNP, ON_TDX, enclave, flipped, guest, replace, td, td_attributes
from cryptography.hazmat.primitives.asymmetric import ec

OF_PROCESSORS = [
    (
        "a quote of another root",
        replace(ON_TDX, td=lambda intel: {"chain": intel.chain(root={"key": intel.pck})}),
        "tdx_chain",
        "does not end in the pinned root",
    ),
    (
        "a platform's certificate that has expired",
        replace(ON_TDX, td=lambda intel: {"chain": intel.chain(pck={"ends": NOW - 1})}),
        "tdx_chain",
        "PCK certificate is not valid",
    ),
    (
        "an enclave that no platform certified",
        replace(ON_TDX, td=lambda intel: {"qe_signer": intel.root}),
        "tdx_chain",
        "quoting enclave's report is not signed",
    ),
    ("an enclave of another signer", enclave(mrsigner=b"s" * 32), "tdx_quoting_enclave", "Intel's quoting enclave"),
    ("an enclave in debug mode", enclave(attributes=b"\x17" + bytes(15)), "tdx_quoting_enclave", "no debug mode"),
    ("a key that the enclave does not name", enclave(report_data=bytes(64)), "tdx_attestation_key", "not the one"),
    (
        "a quote that another key signed",
        replace(ON_TDX, td=lambda intel: {"signer": intel.pck}),
        "tdx_quote_signature",
        "The quote is not signed",
    ),
    ("a TDX module of another signer", td(mrsignerseam=b"s" * 48), "tdx_tdx_module", "not Intel's for production"),
    ("a TD under debug", td_attributes(1 << 28 | 1), "tdx_not_under_debug", "host can read its memory"),
    ("a TD that migrates", td_attributes(1 << 28 | 1 << 29), "tdx_not_migratable", "may be migrated"),
    ("a TD with service TDs", td(mrservicetd=b"\1" + bytes(47)), "tdx_no_service_td", "bound to service TDs"),
    ("a TD whose pages the host removes", td_attributes(0), "tdx_pages_protected", "lack SEPT_VE_DISABLE"),
    *(
        (
            f"another {register}",
            td(**{register: b"?" * 48}),
            "tdx_measured",
            f"{register} has none of the 1 allowed",
        )
        for register in ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3")
    ),
    (
        "a release that does not say what a register holds",
        replace(
            ON_TDX,
            release=lambda release: replace(
                release, measurements={name: each for name, each in release.measurements.items() if name != "rtmr/3"}
            ),
        ),
        "tdx_measured",
        "the release does not say what rtmr/3 holds",
    ),
    ("a quote for another", replace(ON_TDX, bound=lambda data: bytes(64)), "tdx_bound", "not what was expected"),
    (
        "a TPM's quote swapped beside it",
        replace(ON_TDX, bundle=lambda bundle: replace(bundle, tpm=flipped("quote", CLOCK)(bundle.tpm))),
        "tdx_bound",
        "not what was expected",
        {"tpm_quote_signature"},
    ),
    # --- SEV-SNP
    (
        "a signer of another root",
        replace(ON_SNP, guest_signer=lambda amd: {"signer": amd.signer}),
        "snp_chain",
        "ASK or ASVK certificate is not signed",
    ),
    (
        "a processor's key that has expired",
        replace(ON_SNP, guest_key=lambda amd: {"ends": NOW - 1}),
        "snp_chain",
        "VCEK or VLEK certificate is not valid",
    ),
    ("another product's processor", guest(model=bytes((0x19, 0x11, 0))), "snp_chain", "is not a Milan"),
    ("firmware of other versions", guest(reported_tcb=bytes((1, 2, 0, 0, 0, 0, 3, 5))), "snp_chain", "TCB is not"),
    (
        "no certificate of the signer",
        replace(ON_SNP, certificates=lambda found: found[:1]),
        "snp_chain",
        "needs 2 certificates beside it; the bundle has 1",
    ),
    (
        "certificates in another order",
        replace(ON_SNP, certificates=lambda found: found[::-1]),
        "snp_chain",
        "neither SEV-VCEK nor SEV-VLEK",
        {"snp_signature"},  # there is no key to look at
    ),
    (
        "a report that another key signed",
        replace(ON_SNP, guest=lambda amd: {"signer": ec.generate_private_key(ec.SECP384R1())}),
        "snp_signature",
        "is not signed by the VCEK",
    ),
    ("a report of another chip", guest(chip_id=b"else" * 16), "snp_signature", "chip is not the one"),
    ("a report without a signature", guest(key_flags=7 << 2), "snp_signature", "not signed by a VCEK"),
    ("a report of a lower level", guest(vmpl=1), "snp_privilege", "asked for at VMPL 1"),
    ("a guest under debug", guest(policy=1 << 17 | 1 << 19), "snp_not_under_debug", "allows debugging"),
    ("a guest that migrates", guest(policy=1 << 17 | 1 << 18), "snp_not_migratable", "migration agent"),
    ("another measurement", guest(measurement=b"?" * 48), "snp_measured", "measurement has none of the 1 allowed"),
    ("a report for another", replace(ON_SNP, bound=lambda data: bytes(64)), "snp_bound", "not what was expected"),
    # --- a processor
    (
        "a processor of no known kind",
        replace(ON_TDX, processor="sgx"),
        "processor_known",
        "no evidence by TDX or SEV-SNP",
    ),
    ("no processor", replace(ON_TDX, processor=""), "processor_known", "no evidence by TDX or SEV-SNP"),
]
