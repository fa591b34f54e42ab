"""The router: places requests on instances, proxies their streams or hands out tickets."""
