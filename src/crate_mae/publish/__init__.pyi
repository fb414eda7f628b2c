from .hub import push as push
from .package import Package as Package
from .package import build_package as build_package
