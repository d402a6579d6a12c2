"""Carry a bundle to another place.

    tar        one file, the same bytes for the same bundle
    wheels     the packages that serving it needs where there is no network
    own_wheel  deployer's own wheel, packed from the code that runs
    offline    what stands beside a bundle in an archive that carries packages
    archive    read such an archive from anybody, with care
    contents   what is in it, and nothing else
    oci        an OCI image layout
    plain      what the tars of both share

A bundle is verified before it leaves and after it came; both is `workflow`'s work.
"""
